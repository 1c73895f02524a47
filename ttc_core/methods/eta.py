"""ETA: minimise the entropy of answers that are confident, and unlike what was learned before.

EATA without its Fisher term. Source: Niu et al., "Efficient Test-Time Model Adaptation without
Forgetting", ICML 2022; METHOD §1.5.
"""

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.methods.affine import AffineMethod, Loss
from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.settings import IMAGENET_CLASSES, OptimizerSettings
from ttc_core.objective import entropy


class EtaSettings(OptimizerSettings):
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

    name: ClassVar[str] = "eta"
    Settings: ClassVar[type[EtaSettings]] = EtaSettings
    _settings: EtaSettings
    # q, the moving mean (K,) of the probabilities learned from; None before the first.
    _mean_answer: Tensor | None = None

    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        inputs = self.model.normalize(self.model.to_unit(images))
        look = self._statistics.look(len(inputs))
        affine = self._learner.parameters
        with torch.set_grad_enabled(learn):
            logits = self.model.run(inputs, affine=affine, look=look).logits
            entropies = entropy(logits)
        answer = logits.detach()
        probabilities = answer.softmax(dim=1)
        return Prediction(
            logits=answer,
            probabilities=probabilities,
            entropy=entropies.detach(),
            selected=self._select(probabilities, entropies.detach()),
            version=self.version,
            pending=self._pending(entropies, look, learn=learn),
        )

    @property
    def _entropy_limit(self) -> float:
        return self._settings.entropy_fraction * math.log(self.model.classes)

    def _select(self, probabilities: Tensor, entropies: Tensor) -> Tensor:
        """The reliable ones that are not redundant: (N,) bool."""
        reliable = entropies < self._entropy_limit
        if self._mean_answer is None:
            return reliable
        likeness = torch.cosine_similarity(self._mean_answer[None], probabilities, dim=1)
        return reliable & (likeness.abs() < self._settings.redundancy_margin)

    def _loss(self, prediction: Prediction) -> Loss:
        selected = prediction.selected
        assert prediction.pending.entropy is not None
        entropies = prediction.pending.entropy[selected]
        weights = (self._entropy_limit - entropies.detach()).exp()
        return Loss(
            total=(weights * entropies).mean(), entropy=entropies.mean(), selected=selected.sum()
        )

    def _learned(self, prediction: Prediction) -> None:
        mean = prediction.probabilities[prediction.selected].mean(dim=0)
        if self._mean_answer is not None:
            mean = torch.lerp(mean, self._mean_answer, self._settings.momentum)
        self._mean_answer = mean

    def reset(self) -> None:
        super().reset()
        self._mean_answer = None

    def state(self) -> State:
        # Never written in place, so it need not be copied.
        mean = {} if self._mean_answer is None else {"probabilities": self._mean_answer}
        return {**super().state(), "mean_answer": mean}

    def restore(self, state: State) -> None:
        mean = state["mean_answer"].get("probabilities")
        if mean is not None and not (mean.shape == (self.model.classes,) and mean.isfinite().all()):
            raise ValueError("its mean answer is none of this network's")
        super().restore(state)
        self._mean_answer = None if mean is None else mean.to(self.model.device)
