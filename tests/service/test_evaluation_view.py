"""How long an evaluation will still take, as it tells a person."""

import pytest

from service.evaluation_view import Estimate

SOURCE, TENT = ("source", 100), ("tent", 100)


def test_the_time_left_follows_from_what_each_kind_took():
    """A kind that was not met is taken for average; passes are as long as the last that began."""
    estimate = Estimate([SOURCE] * 2 + [TENT] * 2)
    assert estimate.seconds_left([]) is None
    estimate.begin(SOURCE, 1000)
    estimate.took(SOURCE, 1, 100)
    assert estimate.seconds_left([(SOURCE, 900)]) == pytest.approx(9 + 10 + 20)
    estimate.begin(SOURCE, 1000)
    estimate.begin(TENT, 1000)
    estimate.took(TENT, 40, 500)
    assert estimate.seconds_left([(TENT, 500)]) == pytest.approx(40 + 80)
    assert estimate.seconds_left([(TENT, 500), (SOURCE, 100)]) == pytest.approx(40 + 1 + 80)


def test_what_is_found_is_not_waited_for():
    """Rows that are there already shorten the estimate."""
    estimate = Estimate([SOURCE] * 3)
    estimate.skip(SOURCE)
    estimate.begin(SOURCE, 10)
    estimate.took(SOURCE, 5, 5)
    assert estimate.waiting == 1
    assert estimate.seconds_left([(SOURCE, 5)]) == pytest.approx(5 + 10)
