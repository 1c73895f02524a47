"""Utility under time: what a method's accuracy is worth where time counts.

The three measures are those of Tempora: Characterising the Time-Contingent Utility of Online
Test-Time Adaptation (Sreeram, Kwon, Mascolo; ICML 2026, arXiv:2602.06136). All are shares, 0 to 1.
"""

import numpy as np
from numpy.typing import NDArray

SHORTEST_PATIENCE = 0.1
"""Seconds at which a person begins to notice that an answer is late."""

Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]


def discrete(served: Flags, right: Flags) -> dict[str, float | None]:
    """Utility where what comes while the pipeline is busy is lost.

    Args:
        served: (N,) which images were answered.
        right: (N,) which of these are answered right.

    Returns:
        `availability`, the share that was served, and `utility`, the accuracy over all: that of
        what was served times the availability. None of no images.
    """
    return {"utility": _mean(served & right), "availability": _mean(served)}


def patience(period: float) -> float:
    """T, in seconds: 100 ms or three periods, whichever is longer. Half the worth is lost by then.

    Args:
        period: seconds above 0 that an answer may take without loss.
    """
    return max(SHORTEST_PATIENCE, 3 * period)


def overheads(prediction: Numbers, adaptation: Numbers, period: float) -> Numbers:
    """How late each answer is to one who sends the next image as soon as the last is answered.

    Args:
        prediction: (N,) seconds that each answer took.
        adaptation: (N,) seconds that learning from it took, for which the next one waits.
        period: seconds that an answer may take without loss.

    Returns:
        (N,) seconds, 0 where an answer is in time.
    """
    before = np.concatenate([np.zeros(min(len(adaptation), 1)), adaptation[:-1]])
    late: Numbers = np.maximum(0.0, before + prediction - period)
    return late


def discounts(late: Numbers, period: float) -> Numbers:
    """What part of its worth an answer keeps: (N,) above 0, up to 1 for one in time."""
    kept: Numbers = 1.0 / (1.0 + late / (patience(period) - period))
    return kept


def continuous(right: Flags, kept: Numbers) -> dict[str, float | None]:
    """Utility where an answer loses worth as it is late.

    Args:
        right: (N,) which images are answered right.
        kept: (N,) the discount of each.

    Returns:
        `utility`, the mean of what right answers are still worth; and what it is made of:
        accuracy × `timeliness` (the mean discount) + `alignment`, their covariance, above 0 where
        right answers come sooner than wrong ones. None of no images.
    """
    accuracy, timeliness = _mean(right), _mean(kept)
    if accuracy is None or timeliness is None:
        return {"utility": None, "timeliness": None, "alignment": None}
    alignment = float(np.mean((right - accuracy) * (kept - timeliness))) + 0.0
    return {
        "utility": accuracy * timeliness + alignment,
        "timeliness": timeliness,
        "alignment": alignment,
    }


def amortised(right: Flags, learned: Flags) -> dict[str, float | None]:
    """Utility where learning ends when its budget is spent.

    Args:
        right: (N,) which images are answered right.
        learned: (N,) which of them came before the end.

    Returns:
        `utility`, the accuracy over all, and that before and after the end. None of no images.
    """
    return {
        "utility": _mean(right),
        "accuracy_learning": _mean(right[learned]),
        "accuracy_frozen": _mean(right[~learned]),
    }


def _mean(values: Flags | Numbers) -> float | None:
    return float(np.mean(values)) if len(values) else None
