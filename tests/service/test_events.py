"""What happened is kept within bounds of count, time and length, whatever happens."""

import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service import events
from service.events import EVENTS_KEPT, LONGEST_TEXT, MOST_REPEATED, REPEAT_SECONDS, Events


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
