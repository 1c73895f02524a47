"""What methods are composed of: each part follows a stream by itself, and keeps its own state."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ttc_core.methods.contract import Prediction, State

Numbers = NDArray[np.float64]
# Of a state's numbers: floats count as far.
MOST = 2.0**53


class Part(Protocol):
    """A part of a method: statistics, learner, memory, ….

    What it contributes to a prediction is between it and its method; what follows the stream moves
    in `commit`, which is handed all that was answered.
    """

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        """Take note of a batch that was answered, and learned from or not."""

    def reset(self) -> None:
        """Back to the source."""

    def state(self) -> State:
        """What has moved, as a copy: one section or more, of names that no other part has."""

    def restore(self, state: State) -> None:
        """Take up the part's own sections of a state.

        Raises:
            KeyError, ValueError: they are missing, or of another network.
        """


def distributions(given: Any, like: Numbers) -> Numbers:
    """A copy of what a state holds in the place of `like` (…, K), whose rows sum to 1.

    Raises:
        ValueError: it has another shape, or its rows are no distributions.
    """
    if not isinstance(given, Tensor):
        raise ValueError("its averages of answers are none")
    found: Numbers = given.double().cpu().numpy().copy()
    sound = found.shape == like.shape and np.allclose(found.sum(axis=-1), 1)
    if not (sound and (found >= 0).all()):
        raise ValueError("its averages of answers are none of this network's")
    return found


def bounded(given: Any, *, least: float = 0, most: float = MOST) -> float:
    """A number that a state holds.

    Raises:
        ValueError: it is none, or out of its range.
    """
    if not (isinstance(given, int | float) and max(least, -MOST) <= given <= most):
        raise ValueError(f"one of its numbers is {given}")
    return float(given)
