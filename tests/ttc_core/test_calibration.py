"""Calibration error and likelihood: by hand, by simulation, and whatever the order."""

import math

import numpy as np
import pytest

from ttc_core.calibration import (
    BINS,
    LEAST_PROBABILITY,
    calibration_terms,
    likelihood_terms,
    mean_and_error,
    terms_of,
)


def ece(confidence, right):
    return calibration_terms(np.array(confidence), np.array(right, bool)).mean()


def plainly(confidence, right, bins=BINS):
    """As the definition has it, for confidences that all differ."""
    order, n = np.argsort(confidence), len(confidence)
    total = 0.0
    for number in range(bins):
        part = order[number * n // bins : (number + 1) * n // bins]
        if len(part):
            total += len(part) / n * abs(confidence[part].mean() - right[part].mean())
    return total


def test_it_is_the_gap_of_confidence_and_accuracy_by_bins_of_equal_mass():
    """Fifteen bins of two: all of 60 %, half of each right: 10 points too sure; once too unsure."""
    confidence = np.linspace(0.60, 0.6001, 2 * BINS)
    right = np.arange(2 * BINS) % 2 == 0
    assert ece(confidence, right) == pytest.approx(0.10005, abs=1e-6)
    assert ece(confidence - 0.2, right) == pytest.approx(0.09995, abs=1e-6)


@pytest.mark.parametrize("n", [16, 44, 1000, 1007])
def test_it_agrees_with_the_definition(n):
    """Of any number of images, those that fifteen does not divide too."""
    random = np.random.default_rng(n)
    confidence, right = random.uniform(0.1, 1, n), random.random(n) < 0.6
    assert ece(confidence, right) == pytest.approx(plainly(confidence, right))


def test_of_fewer_images_than_bins_each_has_its_own():
    """Then it is the mean distance of confidence to right or wrong; of none it is nothing."""
    assert ece([0.9, 0.6, 0.8], [True, False, True]) == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    assert ece([0.7], [True]) == pytest.approx(0.3)
    assert mean_and_error(calibration_terms(np.empty(0), np.empty(0, bool))) == (None, None)


@pytest.mark.parametrize("digits", [1, 2, 8])
def test_the_order_of_the_images_does_not_matter(digits):
    """Nor where many have one confidence and lie in several bins; each keeps its term."""
    random = np.random.default_rng(0)
    confidence = random.uniform(0.1, 1, 500).round(digits)
    right = random.random(500) < confidence
    terms = calibration_terms(confidence, right)
    for _ in range(5):
        order = random.permutation(500)
        assert calibration_terms(confidence[order], right[order]) == pytest.approx(terms[order])


def test_one_confidence_for_all_is_held_against_the_accuracy():
    """One who always says 1.0 is wrong by the share of wrong answers, however they are sorted."""
    assert ece([1.0] * 100, [False] * 30 + [True] * 70) == pytest.approx(0.3)


def test_calibrated_answers_leave_what_chance_does():
    """Its known bias, which is told in the module; over 200 streams of 1,000 images."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        confidence = random.uniform(0.7, 0.8, 1000)
        found.append(ece(confidence, random.random(1000) < confidence))
    assert np.mean(found) == pytest.approx(0.042, abs=0.002)


def test_its_standard_error_is_that_over_many_streams():
    """Of answers ten points too sure the errors scatter as it says."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(300):
        confidence = random.uniform(0.5, 1, 1000)
        right = random.random(1000) < confidence - 0.15
        found.append(mean_and_error(calibration_terms(confidence, right)))
    means, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(means.std(), rel=0.15)
    assert means.mean() == pytest.approx(0.15, abs=0.01)


def test_the_likelihood_is_the_logarithm_of_the_true_class():
    """In nats; a probability that rounding made 0 stays finite."""
    terms = likelihood_terms(np.array([1, 0.5, 0.25, 0], np.float32))
    assert terms == pytest.approx([0, math.log(2), math.log(4), -math.log(LEAST_PROBABILITY)])
    assert terms[3] == pytest.approx(87.34, abs=0.01)
    mean, error = mean_and_error(terms[:3])
    assert mean == pytest.approx(math.log(2))
    assert error == pytest.approx(math.log(2) / math.sqrt(3))
    assert mean_and_error(terms[:1]) == (0.0, None)


def test_true_probabilities_are_the_most_likely():
    """A network that is surer than it is right, or less sure, is less likely."""
    random = np.random.default_rng(0)
    truth = random.dirichlet(np.ones(5), 4000)
    labels = np.array([random.choice(5, p=each) for each in truth])

    def nll(temperature):
        softened = truth ** (1 / temperature)
        softened /= softened.sum(axis=1, keepdims=True)
        return likelihood_terms(softened[np.arange(4000), labels]).mean()

    assert nll(1) < min(nll(0.7), nll(1.4))


def test_what_was_not_kept_is_left_out():
    """Rows of former versions have neither confidence nor the true class's probability."""
    columns = {"predicted": np.array([1, 0]), "labels": np.array([1, 1])}
    assert terms_of(columns) == {}
    columns["confidence"] = np.array([0.75, 0.5], np.float32)
    assert terms_of(columns)["ece"] == pytest.approx([0.25, 0.5])
    assert terms_of(columns).keys() == {"ece"}
