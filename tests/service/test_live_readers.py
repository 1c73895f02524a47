"""Readers of the live page: each in its own time, none at the service's cost."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from service.errors import NotReady
from service.events import Events
from service.live import readers as module
from service.live.frames import Made
from service.live.readers import COMMENT, END, HELLO, MOST_WAITING, Live
from service.metrics import Metrics


class Numbered:
    """Frames with their number in them."""

    def __init__(self):
        self.new_events, self.number, self.is_anew, self.fails = [], 0, False, False

    def make(self, *, is_due, watched, wants_state):
        if self.fails:
            raise ValueError("nothing can be made")
        self.number += is_due
        anew, self.is_anew = self.is_anew, False
        state = b"state %d" % self.number if wants_state else None
        return Made(b"tick %d" % self.number if is_due and watched else None, state, anew)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FRAME_SECONDS", 0.005)


def metric(metrics, name):
    return metrics.registry.get_sample_value(name)


@contextlib.asynccontextmanager
async def at_work(**options):
    """Readers' frames being made, until the block ends."""
    metrics = Metrics(CollectorRegistry(), classes=10, model={})
    frames, events = Numbered(), Events()
    live = Live(frames, metrics, events, **options)
    making = asyncio.create_task(live.keep_making())
    try:
        yield SimpleNamespace(live=live, frames=frames, metrics=metrics, events=events)
    finally:
        live.end()
        await asyncio.wait_for(making, 10)


def run(walk):
    asyncio.run(asyncio.wait_for(walk(), 30))


async def take(frames, count):
    return [await anext(frames) for _ in range(count)]


def numbers(frames):
    return [int(frame.split()[1]) for frame in frames]


def test_whoever_reads_gets_a_state_and_then_every_tick():
    """All get the same."""

    async def walk():
        async with at_work() as it:
            one, other = (aiter(it.live.join()) for _ in range(2))
            first, second = await asyncio.gather(take(one, 20), take(other, 20))
            for found in (first, second):
                assert found[0] == HELLO
                assert found[1].startswith(b"state")
                assert all(frame.startswith(b"tick") for frame in found[2:])
                numbered = numbers(found[1:])
                assert numbered == list(range(numbered[0], numbered[0] + 19))
            assert set(first) & set(second)
            assert metric(it.metrics, "ttc_live_readers") == 2
            assert metric(it.metrics, "ttc_live_dropped_frames_total") == 0

    run(walk)


def test_a_slow_reader_loses_frames_and_begins_anew():
    """It holds a few, however long it takes; who reads beside it loses none."""

    async def walk():
        async with at_work() as it:
            reader = it.live.join()
            slow, quick = aiter(reader), aiter(it.live.join())
            before = await take(slow, 3)
            for _ in range(10):
                found = await take(quick, 5)
                assert len(reader._waiting) <= MOST_WAITING
            assert numbers(found) == list(range(it.frames.number - 4, it.frames.number + 1))
            after = await take(slow, 4)
            assert [frame.split()[0] for frame in after] == [b"state", b"tick", b"tick", b"tick"]
            fresh, last = numbers(after), numbers(before[1:])[-1]
            assert fresh == list(range(fresh[0], fresh[0] + 4))
            lost = metric(it.metrics, "ttc_live_dropped_frames_total")
            assert fresh[0] - last - 1 <= lost <= fresh[0] - last

    run(walk)


def test_readers_are_written_to_one_in_a_turn_of_the_loop():
    """A hundred states at once would hold up whoever waits for an answer."""

    async def walk():
        async with at_work() as it:
            turn, had = 0, []

            async def count():
                nonlocal turn
                while True:
                    turn += 1
                    await asyncio.sleep(0)

            async def read(frames):
                await take(frames, 2)
                had.append(turn)

            counting = asyncio.create_task(count())
            readers = [aiter(it.live.join()) for _ in range(20)]
            for frames in readers:
                await anext(frames)  # the greeting
            await asyncio.gather(*map(read, readers))
            counting.cancel()
            assert len(set(had)) == len(readers)

    run(walk)


def test_readers_are_bounded_and_make_room():
    """One more is refused with a sentence; one who leaves is replaced."""

    async def walk():
        async with at_work(most=3) as it:
            joined = [it.live.join() for _ in range(3)]
            with pytest.raises(NotReady, match="3 read /events already") as refused:
                it.live.join()
            assert refused.value.retry_after
            it.live.leave(joined[0])
            it.live.join()
            assert metric(it.metrics, "ttc_live_readers") == 3

    run(walk)


def test_the_end_is_the_last_frame_and_comes_at_once():
    """Also for who has frames waiting, or has just come; nobody is taken in any more."""

    async def walk():
        async with at_work() as it:
            readers = [aiter(it.live.join()) for _ in range(3)]
            await take(readers[0], 3)
            await take(readers[1], 1)
            await asyncio.sleep(0.05)
            it.live.end()
            for each in readers:
                rest = [frame async for frame in each]
                assert rest[-1] == END
                assert len([frame for frame in rest if frame != HELLO]) == 1
            with pytest.raises(NotReady, match="shutting down"):
                it.live.join()

    run(walk)


def test_a_foreign_server_that_ends_ends_the_readers():
    """Mounted in an application, nobody else says so."""

    async def walk():
        ending = False
        async with at_work(is_ending=lambda: ending) as it:
            frames = aiter(it.live.join())
            await take(frames, 3)
            ending = True
            assert [frame async for frame in frames][-1] == END
            assert it.live.ended

    run(walk)


def test_who_gets_nothing_gets_a_comment(monkeypatch, caplog):
    """Frames that cannot be made are logged once, and made again a second later."""
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.02)

    async def walk():
        async with at_work() as it:
            frames = aiter(it.live.join())
            await take(frames, 3)
            it.frames.fails = True
            while (frame := await anext(frames)) != COMMENT:
                assert frame.startswith(b"tick")
            it.frames.fails = False
            while (frame := await anext(frames)) == COMMENT:
                pass
            assert frame.startswith(b"tick")
            assert [each.message for each in caplog.records] == ["frames of /events cannot be made"]

    run(walk)


def test_other_weights_begin_anew_for_all():
    """The model's name and its streams are others': a tick would not say so."""

    async def walk():
        async with at_work() as it:
            frames = aiter(it.live.join())
            await take(frames, 3)
            it.frames.is_anew = True
            while not (frame := await anext(frames)).startswith(b"state"):
                assert frame.startswith(b"tick")
            assert metric(it.metrics, "ttc_live_dropped_frames_total") == 0

    run(walk)


def test_events_are_heard_from_the_first():
    """Those that there were already, then each as it comes, from any thread."""

    async def walk():
        async with at_work() as it:
            it.events.note("started")
            await asyncio.sleep(0.02)
            await asyncio.to_thread(it.events.note, "reset")
            while len(it.frames.new_events) < 2:
                await asyncio.sleep(0.001)
            assert [each["event"] for each in it.frames.new_events] == ["started", "reset"]

    run(walk)
