"""What happened is kept within bounds of count, time and length, whatever happens."""

import asyncio
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service import events
from service.errors import NotReady
from service.events import (
    EVENTS_KEPT,
    EVENTS_WAITING,
    LONGEST_TEXT,
    MOST_LISTENERS,
    MOST_REPEATED,
    REPEAT_SECONDS,
    Events,
    Listener,
)


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    return now


def skip(kept, number, reason="none_selected"):
    kept.note_repeated("skipped", stream=f"s{number}", reason=reason)


def test_many_streams_skipping_at_once_cost_no_more_each_than_few():
    """The device's thread notes them: ten times as many take about ten times as long."""

    def seconds(streams):
        kept = Events()
        started = time.thread_time()
        for number in range(streams):
            skip(kept, number)
        return time.thread_time() - started

    few = min(seconds(MOST_REPEATED) for _ in range(3))
    many = min(seconds(10 * MOST_REPEATED) for _ in range(3))
    assert many < 30 * few


def test_what_differs_beyond_the_bound_is_one_entry(clock):
    """Neither memory nor the log grows with the names that strangers make up."""
    kept = Events()
    for _ in range(3):
        for number in range(MOST_REPEATED + 500):
            skip(kept, number)
    assert len(kept._repeated) == MOST_REPEATED + 1
    last = list(kept)[-1]
    assert "stream" not in last
    assert (last["event"], last["count"]) == ("skipped", 3 * 500)
    assert len(list(kept)) == EVENTS_KEPT


def test_any_thread_may_note_what_repeats(monkeypatch):
    """The event loop and the device's thread do, and make room in the same table."""
    monkeypatch.setattr(events, "MOST_REPEATED", 3)
    monkeypatch.setattr(events, "REPEAT_SECONDS", 0.0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    kept = Events()

    def note(_):
        for number in range(3000):
            skip(kept, number % 7)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(note, range(4)))
    finally:
        sys.setswitchinterval(interval)


def test_the_bound_is_free_again_after_a_minute(clock):
    """Those of a minute ago make room, oldest first, and a stream known again has its own entry."""
    kept = Events()
    for number in range(MOST_REPEATED):
        skip(kept, number)
    clock[0] += REPEAT_SECONDS / 2
    skip(kept, "late")
    clock[0] += REPEAT_SECONDS / 2
    skip(kept, "new")
    assert len(kept._repeated) == 2  # the one that had no room, and the new one
    assert list(kept)[-1]["stream"] == "snew"


def test_a_stream_that_goes_on_is_not_forgotten_for_those_that_come_and_go(clock):
    """Its count is told with its next line, also after others have been dropped."""
    kept = Events()
    for _ in range(5):
        skip(kept, "gate")
    clock[0] += REPEAT_SECONDS
    skip(kept, "gate")
    for number in range(MOST_REPEATED):
        skip(kept, number)
    skip(kept, "gate")
    (first, second) = (
        entry for entry in kept._repeated.values() if entry.entry.get("stream") in ("sgate", None)
    )
    assert (first.entry["count"], second.entry["count"]) == (2, 1)


@pytest.mark.parametrize("length", [LONGEST_TEXT + 1, 1_000_000])
def test_texts_are_cut(length):
    """A method of a user's own may give a reason of any length."""
    kept = Events()
    kept.note("adaptation_failed", reason="x" * length)
    kept.note_repeated("skipped", reason="y" * length)
    kept.note_repeated("skipped", reason="y" * length)
    assert all(len(entry["reason"]) == LONGEST_TEXT + 1 for entry in kept)
    assert [entry.get("count") for entry in kept] == [None, 2]


def test_a_listener_hears_what_happens_from_then_on():
    """In order, from any thread; what the log is not told of again comes once."""

    async def walk():
        kept = Events()
        kept.note("before")
        heard = []
        with kept.subscribe() as listener:
            await asyncio.to_thread(kept.note, "started", model="x")
            skip(kept, 1)
            skip(kept, 1)
            kept.note("stopped")
            async for event in listener:
                heard.append(event)
                if event["event"] == "stopped":
                    break
        return heard, list(kept)

    heard, kept = asyncio.run(asyncio.wait_for(walk(), 60))
    assert [event["event"] for event in heard] == ["started", "skipped", "stopped"]
    assert heard[0]["model"] == "x"
    assert (heard[1]["count"], kept[2]["count"]) == (1, 2)  # one's own copy


def test_a_listener_that_waits_is_woken_by_another_thread():
    """Nothing is there when it begins to listen."""

    async def walk():
        kept = Events()
        with kept.subscribe() as listener:
            one = asyncio.ensure_future(anext(aiter(listener)))
            await asyncio.sleep(0)
            assert not one.done()
            await asyncio.to_thread(kept.note, "reset")
            return (await one)["event"]

    assert asyncio.run(asyncio.wait_for(walk(), 60)) == "reset"


def test_a_slow_listener_loses_the_oldest_and_is_told_how_many():
    """It costs bounded memory, and the others nothing."""

    async def walk():
        kept = Events()
        with kept.subscribe() as slow:
            for number in range(EVENTS_WAITING + 7):
                kept.note("tick", number=number)
            events = aiter(slow)
            first, second = await anext(events), await anext(events)
            rest = [await anext(events) for _ in range(EVENTS_WAITING - 1)]
            kept.note("more")
            return first, second, rest[-1], await anext(events)

    lost, second, last, more = asyncio.run(asyncio.wait_for(walk(), 60))
    assert (lost["event"], lost["count"]) == ("lost", 7)
    assert (second["number"], last["number"]) == (7, EVENTS_WAITING + 6)
    assert more["event"] == "more"


def test_listeners_are_bounded_and_leave_when_they_go():
    """One too many is refused with a sentence; each that ends, however, makes room."""

    async def walk():
        kept = Events()

        async def listen():
            with kept.subscribe() as listener:
                async for _ in listener:
                    pass

        tasks = [asyncio.create_task(listen()) for _ in range(MOST_LISTENERS)]
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match=rf"{MOST_LISTENERS} are listening"):
            await listen()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not kept._listeners
        return kept, Listener()

    kept, left = asyncio.run(asyncio.wait_for(walk(), 60))
    kept._listeners.add(left)
    kept.note("after")  # a loop that has ended hears nothing, and harms nobody


def test_any_thread_may_note_while_others_come_to_listen():
    """Nothing is lost that fits, and nothing comes twice."""

    async def walk():
        kept = Events()
        heard = []
        with kept.subscribe() as listener, ThreadPoolExecutor(2) as pool:
            notes = [pool.submit(kept.note, "tick", number=n) for n in range(EVENTS_WAITING)]
            async for event in listener:
                heard.append(event["number"])
                with kept.subscribe():
                    pass
                if len(heard) == len(notes):
                    return heard

    assert sorted(asyncio.run(asyncio.wait_for(walk(), 60))) == list(range(EVENTS_WAITING))
