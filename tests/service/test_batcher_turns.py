"""Whose turn it is: who had least of the device lately, and nobody starves."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.queue import quickest
from tests.fixtures.queue import DeviceClock, Queue, TimedWorker, in_loop, settle

FRAMES = 20


@pytest.fixture
def clock(monkeypatch):
    return DeviceClock(monkeypatch)


def by_size(items):
    """A pass costs 20 ms, an image 10."""
    return 0.02 + 0.01 * len(items)


async def camera(queue, name, frames=FRAMES):
    """Send single images, each when the one before is answered; the batches run before each."""
    waits = []
    for _ in range(frames):
        asked = len(queue.worker.batches)
        await queue.ask("q", name)
        streams = [stream for stream, _ in queue.worker.batches]
        waits.append(streams.index(name, asked) - asked)
    return waits


@pytest.mark.parametrize("floods", [1, 3])
def test_a_flood_takes_nothing_from_the_quiet(clock, floods):
    """Hundreds of full batches stand in line; a quiet camera waits for those that wait with it.

    That is one batch of each other stream at most, as if no flood were there.
    """

    async def walk():
        async with Queue(TimedWorker(clock, by_size), max_images=10_000) as queue:
            await queue.make_busy()
            for name in range(floods):
                for _ in range(300):
                    queue.ask("abcd", f"flood {name}")
            quiet = [asyncio.create_task(camera(queue, f"quiet {n}")) for n in range(9)]
            await settle()
            queue.worker.gate.set()
            waits = [wait for camera in await asyncio.gather(*quiet) for wait in camera]
            assert max(waits) <= floods + 9
            # Nor does the flood starve: it has its share, and what others leave.
            streams = [stream for stream, _ in queue.batches]
            assert streams.count("flood 0") >= FRAMES * by_size("q") / by_size("abcd")

    in_loop(walk())


def test_what_is_shared_are_seconds_not_batches(clock):
    """Two cameras want all they can get; one has heavy batches and gets fewer of them."""

    async def walk():
        worker = TimedWorker(clock, lambda items: 1.0 if "h" in items else 0.1)
        async with Queue(worker, max_batch=1, max_images=10_000) as queue:
            await queue.make_busy()
            for _ in range(100):
                queue.ask("h", "heavy")
            for _ in range(100):
                queue.ask("l", "light")
            queue.worker.gate.set()
            while len(queue.batches) < 88:
                await asyncio.sleep(0)
            counts = Counter(stream for stream, _ in queue.batches[:88])
            assert counts["heavy"] == pytest.approx(8, abs=2)

    in_loop(walk())


def test_who_comes_new_has_no_claim_to_what_others_had(clock):
    """One camera had the device for a hundred seconds; the second shares it from now on."""

    async def walk():
        worker = TimedWorker(clock, lambda items: 1.0)
        async with Queue(worker, max_batch=1, max_images=10_000) as queue:
            for _ in range(100):
                await queue.ask("o", "old")
            await queue.make_busy()
            begun = len(queue.worker.batches)
            for name in ("old", "new") * 20:
                queue.ask("x", name)
            queue.worker.gate.set()
            while len(queue.worker.batches) < begun + 20:
                await asyncio.sleep(0)
            streams = [stream for stream, _ in queue.worker.batches[begun : begun + 20]]
            assert streams.count("old") == streams.count("new") == 10
            assert streams in (["old", "new"] * 10, ["new", "old"] * 10)

    in_loop(walk())


def test_a_stream_is_not_starved_by_ever_new_ones(clock):
    """Whoever comes under a new name each time does not keep a known stream waiting."""

    async def walk():
        worker = TimedWorker(clock, lambda items: 0.1)
        async with Queue(worker, max_batch=1, max_images=10_000) as queue:
            await queue.make_busy()
            known = [queue.ask("k", "known") for _ in range(30)]
            new = []
            queue.worker.gate.set()
            while not all(task.done() for task in known):
                if sum(not task.done() for task in new[-20:]) < 10:  # ten wait at any time
                    new.append(queue.ask("n", f"new {len(new)}"))
                await asyncio.sleep(0)
                assert len(new) < 30 * 30
            turns = [n for n, (stream, _) in enumerate(queue.batches) if stream == "known"]
            gaps = [later - turn for turn, later in pairwise(turns)]
            assert max(gaps) <= 2 * 11  # the ten that wait, and those that came meanwhile

    in_loop(walk())


def test_one_batch_of_ages_is_not_held_against_a_stream_for_ever(clock):
    """It took 200 seconds while ten waited; a minute later it has its turns again."""

    async def walk():
        worker = TimedWorker(clock, lambda items: 200.0 if "slow" in items else 1.0)
        async with Queue(worker, max_batch=1, max_images=10_000) as queue:
            await queue.make_busy()
            slow = [queue.ask(["slow"], "slow"), queue.ask("s", "slow")]
            for number in range(200):
                queue.ask("o", f"other {number % 10}")
            queue.worker.gate.set()
            await slow[1]
            assert 0 < len(queue.batches) - 2 <= 60 + 2 * 10

    in_loop(walk())


def test_who_comes_back_has_no_claim_to_the_time_it_was_away(clock):
    """Nor while something is remembered of another for longer."""

    async def walk():
        worker = TimedWorker(clock, lambda items: 30.0 if "slow" in items else 1.0)
        async with Queue(worker, max_batch=1, max_images=10_000) as queue:
            await queue.make_busy()
            tasks = [queue.ask(*each) for each in ((["slow"], "slow"), ("b", "back"))]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            await settle()
            clock.now += 25.0
            await queue.make_busy()
            begun = len(queue.worker.batches)
            tasks = [queue.ask("x", name) for name in ("back", "other") * 10]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            streams = [stream for stream, _ in queue.worker.batches[begun:]]
            assert streams == ["back", "other"] * 10

    in_loop(walk())


def test_among_those_that_had_nothing_the_oldest_is_next(clock):
    """In order of arrival, however full their batches are."""

    async def walk():
        async with Queue(TimedWorker(clock, by_size)) as queue:
            await queue.make_busy()
            tasks = [queue.ask(images, images) for images in ("a", "bcde", "f", "gh")]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            assert [stream for stream, _ in queue.batches] == ["a", "bcde", "f", "gh"]

    in_loop(walk())


def test_what_was_served_is_forgotten(clock):
    """Two thousand streams come once each: of those long served nothing is kept."""

    async def walk():
        async with Queue(TimedWorker(clock, by_size), max_images=10_000) as queue:
            await queue.make_busy()
            tasks = [queue.ask("a", f"stream {number}") for number in range(2000)]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            await queue.ask("a")
            clock.now += 100
            await queue.ask("a")
            await settle()
            lines = queue.batcher._lines
            assert len(lines._turns) <= 2
            assert not lines._ready
            assert not lines._due

    in_loop(walk())


# Who is woken


def test_an_arrival_that_changes_nothing_wakes_nobody():
    """While the device is busy, and while a stream waits for company that is not there yet."""

    async def walk():
        async with Queue(max_wait=60.0) as queue:
            looks = queue.looks()
            first = queue.ask("a")
            await settle()
            assert len(looks) == 1  # to learn until when it waits
            rest = [queue.ask("b"), queue.ask("c"), queue.ask("x", "later")]
            await settle()
            assert len(looks) == 1
            queue.worker.gate.clear()
            queue.ask("d")
            await queue.worker.started.wait()
            assert len(looks) == 2
            for number in range(20):
                rest.append(queue.ask("abcd", f"stream {number % 10}"))
                await settle()
            assert len(looks) == 2
            queue.worker.gate.set()
            queue.batcher.drain()
            await asyncio.gather(first, *rest)

    in_loop(walk())


def test_one_that_is_due_sooner_is_seen_in_time():
    """The loop sleeps until the first is due; what may close before that wakes it."""

    async def walk():
        async with Queue(max_wait=60.0) as queue:
            waiting = queue.ask("a", "waits")
            await settle()
            full = queue.ask("abcd", "full")
            assert await asyncio.wait_for(full, 20) == ["a!", "b!", "c!", "d!"]
            assert not waiting.done()

    in_loop(walk())


# What it costs


def test_two_thousand_streams_that_wait_cost_no_more_than_ten():
    """Forming a batch, an arrival, and what others ask of the queue: at most twice as much."""
    few, many = quickest((10, 2000), batches=300)
    assert {work: many[work] / few[work] for work in few if many[work] > 2 * few[work]} == {}
