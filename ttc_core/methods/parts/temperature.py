"""How sure the answers are told to be: a temperature from the source's record, and the prior's.

An answer p is told as softmax(ln p / T), which leaves its class as it is. T = T0^(1 - w) + u. T0 is
the temperature that makes the source's answers to held-out images likeliest, if a record tells it
(`ttc_core.calibration_record`), else 1: it is the network's, and gives way to the prior where that
weighs more (w). A prior that follows answers which are mostly wrong is too sure of itself: of that
is seen how often of late it made another class of the network's answer (u). Nothing else goes by
what is told: learning, prior and statistics go by the answers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import Numbers, bounded

# Images over which the share of changed classes runs.
HORIZON = 100


@dataclass(frozen=True)
class Told:
    """(N, K) probabilities, and the share of changed classes after the batch."""

    probabilities: Tensor
    changed: float


class Temperature:
    """How much the answers are softened or sharpened before they are told.

    Args:
        record: the temperature of the source's record; None where there is none.

    Attributes:
        changed: the share of the latest images whose class the prior changed, 0 to 1.
    """

    def __init__(self, record: float | None) -> None:
        self._source = 1.0 if record is None else record
        self.reset()

    def at(self, weight: float, changed: float) -> float:
        """T where the prior weighs so much, in [0, 1], and changed so many classes of late."""
        temperature: float = self._source ** (1 - weight)
        return temperature + changed

    def told(self, answers: Tensor, logits: Tensor, weights: Numbers) -> Told:
        """What is told of answers (N, K) to images in their order.

        Args:
            logits: (N, K), the network's.
            weights: (N,) the prior's in each answer, nan where it was left out.
        """
        changed, temperatures = self.changed, []
        others = (answers.argmax(dim=1) != logits.argmax(dim=1)).tolist()
        for other, weight in zip(others, weights.tolist(), strict=True):
            if math.isnan(weight):
                temperatures.append(self._source)
            else:
                changed += (other - changed) / HORIZON
                temperatures.append(self.at(weight, changed))
        exponents = 1 / answers.new_tensor(temperatures, dtype=torch.float64)[:, None]
        powers = (answers.double() / answers.amax(dim=1, keepdim=True)) ** exponents
        told = (powers / powers.sum(dim=1, keepdim=True)).to(answers)
        # Rounding may level what was less with the most: the class stays the answer's.
        most = told.amax(dim=1, keepdim=True)
        levelled = (told == most) & (answers < answers.amax(dim=1, keepdim=True))
        return Told(torch.where(levelled, torch.nextafter(most, told.new_zeros(())), told), changed)

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        self.changed = prediction.pending.after["temperature"]

    def reset(self) -> None:
        self.changed = 0.0

    def state(self) -> State:
        return {"temperature": {"changed": self.changed}}

    def restore(self, state: State) -> None:
        self.changed = bounded(state["temperature"]["changed"], most=1)
