"""Whether answers of 70 % are right 70 times in 100: calibration error, and log-likelihood.

The expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017) compares confidence
and accuracy bin by bin. Bins of equal mass (Nguyen and O'Connor, EMNLP 2015) waste none on
confidences that hardly occur, and are less biased than bins of equal width (Roelofs et al., AISTATS
2022). It is biased upwards all the same: n perfectly calibrated answers of confidence c leave about
√(30 / (π · n)) times the mean of √(c · (1 - c)), by chance: 4.2 points for 1,000 answers of 75 %.

The negative log-likelihood of the true class is a proper scoring rule (Gneiting and Raftery, JASA
2007): it is least in expectation where the probabilities are the true ones.

Both are means of a term for each image, so that two methods can be compared image by image.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
COLUMNS = ("confidence", "true_probability")
"""What a pass keeps of each image for this: the highest probability, and that of the true class."""
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""The smallest ordinary float32, 1.2e-38: a probability below counts as it, with 87.3 nats."""

Terms = NDArray[np.float64]


def calibration_terms(confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> Terms:
    """(N,) what each image adds to the expected calibration error, which is their mean.

    Confidence less right or wrong, with the sign that it has in the mean over the image's bin. The
    BINS bins are of the sorted confidences, N / BINS images each, rounded; with fewer images than
    BINS each has a bin of its own. The order of the images does not matter: of equal confidences
    that lie in two bins each counts in both, in proportion.

    Args:
        confidence: (N,) the highest probability, 0 to 1.
        right: (N,) whether that class was the true one.
    """
    if not len(confidence):
        return np.empty(0)
    values, same, counts = np.unique(
        confidence.astype(np.float64), return_inverse=True, return_counts=True
    )
    gaps = np.repeat(values - np.bincount(same, right) / counts, counts)
    starts = np.unique(np.arange(BINS) * len(gaps) // BINS)
    signs = np.sign(np.add.reduceat(gaps, starts))
    by_place = np.repeat(signs, np.diff(starts, append=len(gaps)))
    by_value = np.add.reduceat(by_place, np.cumsum(counts) - counts) / counts
    terms: Terms = by_value[same] * (values[same] - right)
    return terms


def likelihood_terms(true_probability: NDArray[np.floating[Any]]) -> Terms:
    """(N,) the negative log-likelihood of the true class in nats, 0 to 87.3 each.

    Args:
        true_probability: (N,) what the true class was given, 0 to 1.
    """
    terms: Terms = 0.0 - np.log(true_probability.clip(LEAST_PROBABILITY, 1).astype(np.float64))
    return terms


def terms_of(columns: Mapping[str, NDArray[Any]]) -> dict[str, Terms]:
    """By the name of a row's field, `ece` and `nll`, what each image adds to it.

    Args:
        columns: (N,) predicted and labels, confidence and true_probability; without one of the last
            two, what follows from it is left out.
    """
    found: dict[str, Terms] = {}
    if "confidence" in columns:
        right = columns["predicted"] == columns["labels"]
        found["ece"] = calibration_terms(columns["confidence"], right)
    if "true_probability" in columns:
        found["nll"] = likelihood_terms(columns["true_probability"])
    return found


def mean_and_error(terms: Terms) -> tuple[float | None, float | None]:
    """The mean, and its standard error over the images; None where there are too few.

    Of calibration terms, or of the difference of two methods', it is the error with each bin's sign
    as it is: too large where no more is left than by chance. Images that come in runs are not
    independent, and theirs is larger than it says.
    """
    if not len(terms):
        return None, None
    error = float(terms.std(ddof=1)) / len(terms) ** 0.5 if len(terms) > 1 else None
    return float(terms.mean()), error
