"""How sure an accuracy is, and whether two methods differ on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)

Correct = NDArray[np.bool_]
# Numbers too, of which the mean is asked for as of right or wrong.
Observed = NDArray[np.bool_ | np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval, in the units of what it is about."""

    low: float
    high: float


def wilson(correct: int, images: int) -> Interval:
    """Wilson's interval of an accuracy, both ends in [0, 1].

    Raises:
        ValueError: there are no images, or more right answers than images.
    """
    found = binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))


def average_interval(correct: Sequence[Correct]) -> Interval:
    """The interval of an average over corruptions of the same images.

    The images recur under each corruption, so their answers are not independent: each image's mean
    over the corruptions counts as one observation.

    Args:
        correct: for each corruption (N,), image by image in the same order.
    """
    means = np.mean(correct, axis=0)
    half = _Z * float(means.std(ddof=1)) / len(means) ** 0.5 if len(means) > 1 else 0.0
    return Interval(max(0.0, float(means.mean()) - half), min(1.0, float(means.mean()) + half))


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same images.

    Attributes:
        only_first, only_second: images that one alone answers right.
        p: of the two-sided test that neither is better; 1 where they never differ.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Correct, second: Correct) -> Comparison:
    """McNemar's exact test between two methods that answered the same images (N,)."""
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    differing = only_first + only_second
    p = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return Comparison(only_first, only_second, p)


def paired_difference(first: Sequence[Observed], second: Sequence[Observed]) -> tuple[float, float]:
    """The difference of two averages over the same corruptions of the same images.

    Each image's mean difference over the corruptions is one observation.

    Returns:
        The difference, and its standard error.
    """
    differences = np.mean(np.asarray(first, float) - np.asarray(second, float), axis=0)
    return float(differences.mean()), float(differences.std(ddof=1)) / len(differences) ** 0.5


def paired_average(first: Sequence[Correct], second: Sequence[Correct]) -> tuple[float, float]:
    """As `paired_difference`, with the p of a two-sided normal test in place of the error."""
    mean, error = paired_difference(first, second)
    if error == 0:
        return mean, 1.0 if mean == 0 else 0.0
    return mean, 2 * (1 - NormalDist().cdf(abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several tests: what each p is worth when all are looked at."""
    order: NDArray[Any] = np.argsort(p_values)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
