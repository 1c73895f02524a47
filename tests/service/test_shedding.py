"""What is given up under load, in which order, and that it comes back; on a clock of its own."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.events import Events
from service.shedding import CALM_SECONDS, LOW, STEPS, Shedding
from tests.fixtures.clock import Clock
from tests.fixtures.load import load_of


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shedding(clock):
    return Shedding(Events(), clock=clock)


def told(shedding):
    return [(event["event"], event.get("what")) for event in shedding._events]


def test_learning_goes_first_then_the_second_view(shedding):
    """However high the load is at once: a step a look, and no further than there is to go."""
    found = []
    for load in (0.99, 5.0, 5.0, 5.0):
        shedding.look(load_of(load))
        found.append(shedding.shed)
    assert found == [None, "learning", "second_view", "second_view"]
    assert told(shedding) == [("shedding", "learning"), ("shedding", "second_view")]


def test_a_load_that_learning_is_enough_for_costs_no_more(shedding, clock):
    """The second view goes at twice the load that learning goes at."""
    for _ in range(100):
        shedding.look(load_of(1.9))
        clock.now += 1
    assert shedding.shed == "learning"
    shedding.look(load_of(2.0))
    assert shedding.shed == "second_view"


def test_it_comes_back_step_by_step_once_the_load_was_low_for_a_while(shedding, clock):
    """A step for each such while, and the end is told."""
    for _ in range(2):
        shedding.look(load_of(3.0))
    found = []
    for _ in range(4):
        clock.now += CALM_SECONDS / 2
        shedding.look(load_of(0.0))
        found.append(shedding.shed)
    assert found == ["second_view", "learning", "learning", None]
    assert told(shedding)[-2:] == [("shedding_less", "learning"), ("shedding_over", None)]


def test_each_step_is_told_with_what_led_to_it(shedding, clock):
    """How long somebody waits, how many, what is allowed of both; since when is the first step's,
    whatever else is given up and comes back until it is over."""
    assert shedding.given_up is None
    began = time.time()
    shedding.look(load_of(1.5))
    first = shedding.given_up
    assert first.what == "learning"
    assert began <= first.since <= time.time()
    shedding.look(load_of(0.25, more=500))
    assert shedding.given_up.evidence == {
        **{"load": 2.5, "waited_seconds": 0.125, "waited_seconds_allowed": 0.5},
        **{"images_more": 500, "images_more_allowed": 200.0, "images_waiting": 300},
    }
    for expected in ("learning", None):
        clock.now += CALM_SECONDS
        shedding.look(load_of(0.1))
        now = shedding.given_up
        assert (now and now.what) == expected
        assert now is None or now.since == first.since
    found = {event["event"]: event["evidence"]["load"] for event in shedding._events}
    assert found == {"shedding": 2.5, "shedding_less": 0.1, "shedding_over": 0.1}
    shedding.look(load_of(1.0))
    assert shedding.given_up.since > first.since


def test_between_low_and_high_nothing_changes(shedding, clock):
    """One look at a load that is not low begins the while anew."""
    shedding.look(load_of(1.0))
    for _ in range(20):
        clock.now += 0.8 * CALM_SECONDS
        shedding.look(load_of(LOW))
        shedding.look(load_of(0.0))
        assert shedding.shed == "learning"


def test_what_comes_and_goes_is_no_flood_of_events(shedding, clock):
    """The same within a minute is one event with a count, the latest's moment and evidence."""
    for number in range(30):
        shedding.look(load_of(1.0 + number))
        clock.now += CALM_SECONDS
        shedding.look(load_of(0.0))
    begun, over = shedding._events
    assert [begun["count"], over["count"]] == [30, 30]
    assert begun["time"] < begun["latest"] < over["latest"]
    assert begun["evidence"]["load"] == 30


@given(
    looks=st.lists(st.tuples(st.floats(0, 4), st.floats(0, 2 * CALM_SECONDS)), max_size=60),
)
def test_whatever_the_load_it_goes_one_step_and_never_back_in_haste(looks):
    """A step back needs so many seconds since the last step, and since the load was not low."""
    clock = Clock()
    shedding, since = Shedding(Events(), clock=clock), 0.0
    for load, seconds in looks:
        clock.now += seconds
        before = shedding.level
        shedding.look(load_of(load))
        assert abs(shedding.level - before) <= 1
        assert (shedding.shed is None) == (shedding.level == 0)
        assert shedding.shed in (None, *STEPS)
        if load >= LOW:
            since = clock.now
            assert shedding.level >= before
        if shedding.level < before:
            assert clock.now - since >= CALM_SECONDS
            since = clock.now
