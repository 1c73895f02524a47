"""The frozen source answers some images in the shadow of the served answer: which is surer?

Statistics that follow a stream do harm where they take its classes for its weather: one class
alone, two at first. The answers then are less sure than the source's own to the same images, which
is seen without labels. A source that fails is sure, too: so the doubt weighs less the further the
stream has gone from it (`stream_statistics`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import bounded
from ttc_core.model import SourceModel

# Of a condition's images the source answers so many first ones, then one of so many.
FIRST, EVERY = 32, 16
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
        source, served: their moving means.
        images: how many were compared.
        seen: how many came since the start or the latest change.
    """

    source: float = 0.0
    served: float = 0.0
    images: int = 0
    seen: int = 0


class Shadow:
    """Chooses the images that the source answers, and compares."""

    compared: Compared

    def __init__(self, model: SourceModel) -> None:
        self._least = LEAST_ENTROPY * math.log(model.classes)
        self.reset()

    def reset(self) -> None:
        self.compared = Compared()

    restart = reset

    @property
    def doubt(self) -> float:
        """By how much (a ratio's logarithm) the answers are less sure than the source's; 0 where
        they are surer."""
        compared = self.compared
        ratio = (compared.served + self._least) / (compared.source + self._least)
        return max(0.0, math.log(ratio)) * compared.images / (compared.images + HALF)

    def chosen(self, images: int) -> list[int]:
        """Which of so many images to come the source has to answer."""
        seen = self.compared.seen
        return [i for i in range(images) if seen + i < FIRST or (seen + i) % EVERY == 0]

    def after(self, images: int, source: Sequence[float], served: Sequence[float]) -> Compared:
        """What the comparison will be after so many images, of which those chosen have these
        entropies."""
        before = self.compared
        of_source, of_served, compared = before.source, before.served, before.images
        for theirs, ours in zip(source, served, strict=True):
            if math.isfinite(theirs) and math.isfinite(ours):
                compared += 1
                weight = max(1 / compared, 1 / HORIZON)
                of_source += weight * (theirs - of_source)
                of_served += weight * (ours - of_served)
        return Compared(of_source, of_served, compared, before.seen + images)

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        self.compared = prediction.pending.after["shadow"]

    def state(self) -> State:
        return {"shadow": vars(self.compared).copy()}

    def restore(self, state: State) -> None:
        given = state["shadow"]
        source, served = (bounded(given[name]) for name in ("source", "served"))
        images, seen = (int(bounded(given[name])) for name in ("images", "seen"))
        self.compared = Compared(source, served, images, seen)
