"""Evidence that may be looked at at any time, however long a stream lives.

A bettor wins where observations x in [−1, 1] are above 0 on average, given those before: its
wealth Π (1 + λ_t x_t), with stakes λ_t chosen before x_t is seen, reaches 1/α with a probability of
at most α where they are not (Ville's inequality). What harms late must be seen as well as what
harms from the start, so that it does not bet with one purse that years of good answers have
emptied: before each image it opens another, with a part of its capital that falls as
1 / (t ln² t). The sum of all purses and what is left is one bettor's wealth, so the bound holds.

Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B
2024 (stakes from the mean and variance before); Shin, Ramdas & Rinaldo, "E-detectors", 2022
(a sum over starting times).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttc_core.envelope.clauses import BUILT_IN
from ttc_core.methods.parts import bounded

# Observations that mean and variance run over, and what they are taken for before any came.
HORIZON = 16
START_VARIANCE, LEAST_VARIANCE = 0.25, 1e-6
# Beyond any bound it is no matter, and infinity could not be saved.
_MOST = 1e30


@dataclass(frozen=True)
class Evidence:
    """What a bettor has made of the observations so far; never written in place.

    Attributes:
        observations: how many came.
        opened: what all purses that were opened hold together.
        mean, variance: the moving moments from which the next stake is chosen.
    """

    observations: int = 0
    opened: float = 0.0
    mean: float = 0.0
    variance: float = START_VARIANCE

    @property
    def wealth(self) -> float:
        """Of a capital of 1; 1/α is reached with a probability of at most α where x ≤ 0 on
        average."""
        return self.opened + _kept(self.observations)

    def after(
        self,
        observation: float,
        horizon: int = HORIZON,
        factor: float = BUILT_IN.image_in_evidence,
    ) -> "Evidence":
        """What it has after an observation in [−1, 1]; a number beyond counts as the nearest.

        Args:
            horizon: observations that mean and variance run over.
            factor: by which one may raise the wealth of all purses, below 2: it stakes so much of
                it less 1 at most. One may lower it to 2 less this factor of what it was, and never
                ruins it.
        """
        best = self.mean / (self.variance + self.mean * self.mean)
        stake = min(max(best, 0.0), factor - 1)
        x = min(max(observation, -1.0), 1.0)
        count = self.observations + 1
        purse = _kept(self.observations) - _kept(count)
        opened = (self.opened + purse) * (1 + stake * x)
        weight = 1 / min(count + 1, horizon)
        mean = self.mean + weight * (x - self.mean)
        variance = self.variance + weight * ((x - self.mean) * (x - mean) - self.variance)
        return Evidence(count, min(opened, _MOST), mean, max(variance, LEAST_VARIANCE))

    @classmethod
    def restored(cls, given: Mapping[str, Any]) -> "Evidence":
        """What `state` gave.

        Raises:
            KeyError, ValueError: a number is missing, or cannot be.
        """
        return cls(
            int(bounded(given["observations"])),
            bounded(given["opened"], most=_MOST),
            bounded(given["mean"], least=-1, most=1),
            bounded(given["variance"], least=LEAST_VARIANCE, most=4),
        )


def _kept(observations: int) -> float:
    """Of a capital of 1, what has not been put into purses after so many observations."""
    return 1 / math.log(math.e + observations)
