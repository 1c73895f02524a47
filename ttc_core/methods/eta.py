"""ETA: minimise the entropy of answers that are confident, and unlike what was learned before.

EATA without its Fisher term. Source: Niu et al., "Efficient Test-Time Model Adaptation without
Forgetting", ICML 2022; METHOD §1.5.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.methods.composed import AffineMethod
from ttc_core.methods.contract import Prediction
from ttc_core.methods.parts import Part
from ttc_core.methods.parts.gradient import Loss
from ttc_core.methods.parts.memory import MeanAnswer
from ttc_core.methods.settings import IMAGENET_CLASSES, AffineSettings
from ttc_core.objective import entropy


class EtaSettings(AffineSettings):
    """ETA's hyperparameters. Its paper's `momentum` is that of the mean answer."""

    entropy_fraction: float = Field(
        0.4, gt=0, le=1, description="learn below this share of ln K (E0)"
    )
    redundancy_margin: float = Field(
        0.4, gt=0, description="learn where |cos| to the mean answer is below it (d)"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of the mean answer learned from (q)")
    sgd_momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")

    @classmethod
    def defaults(cls, classes: int, given: dict[str, Any]) -> dict[str, Any]:
        # A confident answer's cosine to a balanced mean is 1/√K: the margin has to be above it.
        margin = 0.05 if classes >= IMAGENET_CLASSES else 0.4
        return {**super().defaults(classes, given), "redundancy_margin": margin}

    @property
    def optimizer_momentum(self) -> float:
        return self.sgd_momentum


class Eta(AffineMethod):
    """One step on the weighted entropy of the images that are selected, after the answer."""

    name = "eta"
    Settings = EtaSettings
    _settings: EtaSettings

    def _compose(self) -> Sequence[Part]:
        self._mean_answer = MeanAnswer(self.model, self._settings.momentum)
        return (*super()._compose(), self._mean_answer)

    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        inputs = self.model.normalize(self.model.to_unit(images))
        look = self._statistics.look(len(inputs))
        with torch.set_grad_enabled(learn):
            logits = self.model.run(inputs, affine=self._learner.affine, look=look).logits
            entropies = entropy(logits)
        selected = self._select(logits.detach().softmax(dim=1), entropies.detach())
        return self._answered(logits, entropies, selected, look, learn=learn)

    @property
    def _entropy_limit(self) -> float:
        return self._settings.entropy_fraction * math.log(self.model.classes)

    def _select(self, probabilities: Tensor, entropies: Tensor) -> Tensor:
        """The reliable ones that are not redundant: (N,) bool."""
        reliable = entropies < self._entropy_limit
        mean = self._mean_answer.value
        if mean is None:
            return reliable
        likeness = torch.cosine_similarity(mean[None], probabilities, dim=1)
        return reliable & (likeness.abs() < self._settings.redundancy_margin)

    def _loss(self, prediction: Prediction) -> Loss:
        selected = prediction.selected
        assert prediction.pending.entropy is not None
        entropies = prediction.pending.entropy[selected]
        weights = (self._entropy_limit - entropies.detach()).exp()
        # Of every image, the others' 0: of none that is selected there would be no largest one.
        of_each = weights.new_zeros(len(selected))
        of_each[selected] = weights / max(1, len(weights))
        return Loss(
            total=(weights * entropies).mean(),
            entropy=entropies.mean(),
            selected=selected.sum(),
            weights=of_each,
        )
