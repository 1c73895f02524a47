"""Streams that have sent nothing for much longer than is their habit; no real time passes here."""

import pytest

from service.events import Events
from service.silence import FEWEST_REQUESTS, GONE_SECONDS, MOST_APART, Silence
from tests.fixtures.clock import Clock


@pytest.fixture
def clock():
    return Clock(1000.0)


@pytest.fixture
def silence(clock):
    wall = lambda: 1.5e9 + clock.now / 3  # noqa: E731
    return Silence(Events(), factor=3, least=60, most_streams=50, clock=clock, wall=wall)


def send(silence, clock, name="gate", *, gaps):
    """Requests, each so many seconds after the one before; somebody looks every second."""
    for gap in gaps:
        wait(silence, clock, gap)
        silence.heard(name)


def wait(silence, clock, seconds):
    until = clock.now + seconds
    while clock.now + 1 < until:
        clock.now += 1
        silence.look()
    clock.now = until
    silence.look()


def told(silence):
    return [(event["event"], event.get("stream")) for event in silence._events]


HABIT = [1.0] * FEWEST_REQUESTS


def test_a_camera_that_stops_is_silent_once_and_back_once(silence, clock):
    """An event each, with the seconds; what it sends afterwards is told no more."""
    send(silence, clock, gaps=HABIT)
    wait(silence, clock, 59)
    assert (told(silence), silence.silent) == ([], frozenset())
    wait(silence, clock, 200)
    assert (told(silence), silence.silent) == ([("silent", "gate")], {"gate"})
    send(silence, clock, gaps=[0, 1, 1])
    wait(silence, clock, 1)
    assert told(silence) == [("silent", "gate"), ("back", "gate")]
    assert silence.silent == frozenset()
    assert [event["seconds"] for event in silence._events] == [60, 259]


def test_it_is_watched_again_once_it_is_back(silence, clock):
    """One outage does not make a habit: the next is told within some minutes, too."""
    send(silence, clock, gaps=HABIT)
    send(silence, clock, gaps=[5000, *HABIT])
    wait(silence, clock, 3 * 60)
    assert told(silence) == [("silent", "gate"), ("back", "gate"), ("silent", "gate")]


def test_too_few_requests_are_no_habit(silence, clock):
    """Whoever tries the service by hand is not missed."""
    send(silence, clock, gaps=HABIT[:-1])
    wait(silence, clock, 5000)
    assert told(silence) == []


@pytest.mark.parametrize("pause", [90.0, 600.0])
def test_a_camera_with_long_pauses_is_silent_only_after_longer_ones(silence, clock, pause):
    """An image every so many seconds is its habit."""
    send(silence, clock, gaps=[pause] * (FEWEST_REQUESTS + 5))
    wait(silence, clock, 2.9 * pause)
    assert told(silence) == []
    wait(silence, clock, 0.2 * pause)
    assert silence.silent == {"gate"}


def test_pauses_that_come_again_become_a_habit(silence, clock):
    """At first they are told, after some of them no more."""
    send(silence, clock, gaps=[1.0] * 40)
    counts = []
    for _ in range(6):
        before = len(told(silence))
        send(silence, clock, gaps=[1200.0, *[1.0] * 40])
        counts.append(len(told(silence)) - before)
    assert counts[0] == 2
    assert counts[-2:] == [0, 0]


def test_a_reset_stream_has_no_habit(silence, clock):
    """So is a camera forgotten that was taken away."""
    send(silence, clock, gaps=HABIT)
    send(silence, clock, "other", gaps=HABIT)
    wait(silence, clock, 100)
    assert silence.silent == silence.silent_since.keys() == {"gate", "other"}
    # When they sent last, on the wall's clock; whoever asks again is told the same.
    since = silence.silent_since
    assert since["other"] - since["gate"] == pytest.approx(sum(HABIT) / 3)
    clock.now += 0.123
    assert silence.silent_since == since
    silence.forget(["gate"])
    assert silence.silent == {"other"}
    silence.forget(None)
    wait(silence, clock, 100)
    assert silence.silent == frozenset()


def test_who_is_silent_for_a_day_was_taken_away(silence, clock):
    """It is forgotten, and an alert with it."""
    send(silence, clock, gaps=HABIT)
    wait(silence, clock, 100)
    clock.now += GONE_SECONDS
    silence.look()
    assert silence.silent == frozenset()
    send(silence, clock, gaps=HABIT)
    wait(silence, clock, 100)
    assert silence.silent == {"gate"}


def test_what_is_known_of_streams_is_bounded(silence, clock):
    """Whoever names ever more of them fills no memory; the latest are known."""
    for number in range(200):
        for _ in range(FEWEST_REQUESTS):
            silence.heard(f"s{number}")
    assert len(silence._habits) == 50
    wait(silence, clock, 100)
    assert silence.silent == {f"s{number}" for number in range(150, 200)}
    assert silence._due == []


def test_many_at_once_are_few_events(silence, clock):
    """A network that fails does not bury everything else."""
    for number in range(40):
        for _ in range(FEWEST_REQUESTS):
            silence.heard(f"s{number}")
    wait(silence, clock, 100)
    assert len(told(silence)) == MOST_APART + 1
    assert list(silence._events)[-1]["streams"] == 40 - MOST_APART


def test_looking_costs_nothing_where_no_time_is_up(silence, clock):
    """However many streams there are, only those whose time is up are looked at."""
    for number in range(50):
        for _ in range(FEWEST_REQUESTS):
            silence.heard(f"s{number}")
    silence._limit = None  # whoever looked at one would fail
    clock.now += 59
    silence.look()
