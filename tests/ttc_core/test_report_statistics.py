"""Intervals and paired tests, against numbers known from elsewhere and by their properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttc_core.report.statistics import average_interval, holm, mcnemar, paired_average, wilson


def test_wilson_is_the_interval_of_the_textbook():
    """10 of 20: 0.299 to 0.701; none of 10: 0 to 0.278."""
    assert wilson(10, 20).low == pytest.approx(0.2993, abs=1e-4)
    assert wilson(10, 20).high == pytest.approx(0.7007, abs=1e-4)
    assert wilson(0, 10).low == 0
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_accuracy_and_stays_a_fraction(counts):
    """Whatever the counts."""
    correct, images = counts
    interval = wilson(correct, images)
    assert 0 <= interval.low <= correct / images <= interval.high <= 1


def test_mcnemar_looks_only_at_where_they_differ():
    """6 against 1 of ten that differ: p 0.125; three each: 1."""
    first = np.array([True] * 6 + [False] * 1 + [True] * 50)
    second = np.array([False] * 6 + [True] * 1 + [True] * 50)
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second) == (6, 1)
    assert test.p == pytest.approx(0.125)
    assert mcnemar(first, first).p == 1


def test_holm_corrects_the_smallest_most():
    """0.01, 0.04, 0.03 become 0.03, 0.06, 0.06; the order is kept, and 1 the most."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_images_that_recur_are_not_counted_twice():
    """The same answers under two corruptions say no more than under one."""
    once = np.random.default_rng(0).random(400) < 0.7
    alone, twice = average_interval([once]), average_interval([once, once])
    assert (alone.low, alone.high) == pytest.approx((twice.low, twice.high))
    binomial = wilson(int(once.sum()), 400)
    assert alone.high - alone.low == pytest.approx(binomial.high - binomial.low, rel=0.05)


def test_the_interval_of_an_average_holds_the_truth_as_often_as_it_says():
    """About 95 of 100 times, for images that are easy or hard under every corruption alike."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        ease = random.random(200)
        interval = average_interval([random.random(200) < ease for _ in range(5)])
        held += interval.low <= 0.5 <= interval.high
    assert 0.91 < held / 300 < 0.99


def test_two_averages_are_compared_image_by_image():
    """A small gain on every image is found; none is not."""
    random = np.random.default_rng(2)
    base = [random.random(500) < 0.6 for _ in range(6)]
    better = [one | (random.random(500) < 0.1) for one in base]
    difference, p = paired_average(better, base)
    assert 0 < difference < 0.1
    assert p < 0.001
    assert paired_average(base, base) == (0, 1)
