"""The frozen source answers some images in the shadow of the served answer: which is surer?

Statistics that follow a stream do harm where they take its classes for its weather: one class
alone, two at first. Answers by them then are less sure than the source's own to the same images,
which is seen without labels. A source that fails is sure, too: so the doubt weighs less the further
the stream has gone from it (`stream_statistics`). Compared is what follows wholly, also while less
of it is served: else doubt would feed itself, since what lies between is less sure than both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import bounded
from ttc_core.model import SourceModel

# Of a condition's images the source answers so many first ones, then one of so many: a prime, so
# that cameras that take turns are all compared.
FIRST, EVERY = 32, 17
# Images compared that the means run over.
HORIZON = 32
# Images compared at which the doubt is half of what they say.
HALF = 8
# Of ln K, added to both entropies: how much surer the source is of 0.01 nats tells little.
LEAST_ENTROPY = 0.02


@dataclass(frozen=True)
class Compared:
    """What the comparison has come to; entropies in nats, of answers to one view.

    Attributes:
        source, following: their moving means.
        images: how many were compared.
        seen: how many came since the start or the latest change.
    """

    source: float = 0.0
    following: float = 0.0
    images: int = 0
    seen: int = 0


class Shadow:
    """Chooses the images that the source answers, and compares."""

    compared: Compared

    def __init__(self, model: SourceModel) -> None:
        self._classes, self._least = model.classes, LEAST_ENTROPY * math.log(model.classes)
        self.reset()

    def reset(self) -> None:
        self.compared = Compared()

    @property
    def doubt(self) -> float:
        """See `doubt_of`."""
        return self.doubt_of(self.compared)

    def doubt_of(self, compared: Compared) -> float:
        """By how much (a ratio's logarithm) what follows is less sure than the source; 0 where it
        is surer."""
        ratio = (compared.following + self._least) / (compared.source + self._least)
        return max(0.0, math.log(ratio)) * compared.images / (compared.images + HALF)

    def chosen(self, images: int) -> list[int]:
        """Which of so many images to come the source has to answer."""
        seen = self.compared.seen
        return [i for i in range(images) if seen + i < FIRST or (seen + i) % EVERY == 0]

    def after(self, images: int, source: Sequence[float], following: Sequence[float]) -> Compared:
        """What the comparison will be after so many images, of which those chosen have these
        entropies."""
        before = self.compared
        of_source, of_following, compared = before.source, before.following, before.images
        for theirs, ours in zip(source, following, strict=True):
            if math.isfinite(theirs) and math.isfinite(ours):
                compared += 1
                weight = max(1 / compared, 1 / HORIZON)
                of_source += weight * (theirs - of_source)
                of_following += weight * (ours - of_following)
        return Compared(of_source, of_following, compared, before.seen + images)

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        self.compared = prediction.pending.after["shadow"]

    def state(self) -> State:
        return {"shadow": vars(self.compared).copy()}

    def restore(self, state: State) -> None:
        given = state["shadow"]
        most = math.log(self._classes) + 0.01  # of rounding
        source, following = (bounded(given[name], most=most) for name in ("source", "following"))
        seen = int(bounded(given["seen"]))
        images = int(bounded(given["images"], most=seen))
        self.compared = Compared(source, following, images, seen)


@torch.no_grad()
def answers_to(model: SourceModel, inputs: Tensor, rows: Sequence[int], **seen: Any) -> Tensor:
    """(n, K) the logits of some rows of normalised images, by the source or seen so."""
    if not rows:
        return inputs.new_zeros((0, model.classes))
    several = list(rows) if len(rows) > 1 or model.takes_one else [rows[0]] * 2
    return model.run(inputs[several], **seen).logits[: len(rows)]
