"""What one image, answered by both, says of harm: a proxy, since nobody knows what is right."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttc_core.methods.parts import bounded

SLACK = 0.25
HORIZON = 100


@dataclass(frozen=True)
class Pairs:
    """The moving mean of what is served, (K,); never written in place."""

    served: Tensor | None = None
    images: int = 0

    def after(self, served: Tensor, source: Tensor) -> tuple["Pairs", list[float]]:
        """With more images; and of each how much it speaks for harm, in [−1, 1].

        Args:
            served: (n, K), probabilities. source: (n, K), logits.
        """
        served, pairs, found = served.detach().double().cpu(), self, list[float]()
        for ours, theirs in zip(served, source.detach().double().cpu().softmax(dim=1), strict=True):
            pairs = pairs._with(ours)
            assert pairs.served is not None
            own = ours / pairs.served.clamp_min(1e-3)
            own /= own.sum()
            answer, other = int(ours.argmax()), int(theirs.argmax())
            lost = float(theirs[other] - theirs[answer])
            found.append(lost - float(own[answer] - own[other]) - SLACK)
        return pairs, found

    def _with(self, ours: Tensor) -> "Pairs":
        images = self.images + 1
        before = torch.full_like(ours, 1 / len(ours)) if self.served is None else self.served
        return Pairs(before + (ours - before) / min(images + 10, HORIZON), images)

    def state(self) -> dict[str, Any]:
        return {"images": self.images} | ({} if self.served is None else {"served": self.served})

    @classmethod
    def restored(cls, given: Mapping[str, Any], classes: int) -> "Pairs":
        served = given.get("served")
        if served is not None and not (isinstance(served, Tensor) and served.shape == (classes,)):
            raise ValueError("its comparisons are none")
        return cls(served, int(bounded(given["images"])))
