"""How long an evaluation will still take, as it tells a person."""

import pytest

from service.evaluation_view import Estimate
from tests.fixtures.clock import Clock


def test_the_time_left_follows_from_what_each_kind_took():
    """A kind that was not met is taken for average; passes are as long as this one."""
    clock = Clock()
    estimate = Estimate([("source", 100)] * 2 + [("tent", 100)] * 2, clock=clock)
    estimate.begin(("source", 100), 1000)
    clock.now += 1
    assert estimate.seconds_left(100) == pytest.approx(9 + 10 + 20)
    clock.now += 9
    assert estimate.seconds_left(1000) == pytest.approx(10 + 20)
    estimate.begin(("source", 100), 1000)
    estimate.begin(("tent", 100), 1000)
    clock.now += 40
    assert estimate.seconds_left(500) == pytest.approx(40 + 80)


def test_what_is_found_is_not_waited_for():
    """Rows that are there already shorten the estimate."""
    clock = Clock()
    estimate = Estimate([("source", 100)] * 3, clock=clock)
    estimate.skip(("source", 100))
    estimate.begin(("source", 100), 10)
    clock.now += 5
    assert estimate.waiting == 1
    assert estimate.seconds_left(5) == pytest.approx(5 + 10)
