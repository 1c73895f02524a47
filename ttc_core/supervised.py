"""A reference, no method: scales and shifts trained on the stream itself, with its labels.

It shows where adaptation without labels could arrive (the paper's Figure 3), so it is not among
`METHODS` and never served.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from ttc_core.datasets import Stream
from ttc_core.methods.composed import StatisticsMethod
from ttc_core.methods.contract import Adaptation, Prediction
from ttc_core.methods.parts import Part
from ttc_core.methods.parts.gradient import Loss, gradient
from ttc_core.methods.parts.learner import AffineLearner
from ttc_core.methods.settings import AffineSettings
from ttc_core.objective import entropy


class SupervisedSettings(AffineSettings):
    """The reference's hyperparameters; Adam 1e-3 whatever the data set."""

    passes: PositiveInt = 5
    statistics: Literal["batch"] = "batch"

    @classmethod
    def defaults(cls, classes: int, given: dict[str, Any]) -> dict[str, Any]:
        return {}


class Supervised(StatisticsMethod):
    """Cross-entropy with the labels, several passes over the stream; then it only answers."""

    name = "supervised"
    adapts = frozenset({"affine"})
    Settings = SupervisedSettings
    _settings: SupervisedSettings

    def _compose(self) -> Sequence[Part]:
        self._learner = AffineLearner(self.model, self._settings)
        return (self._learner, *super()._compose())

    @property
    def drift(self) -> float:
        return self._learner.drift

    def fit(self, stream: Stream, batch_size: int) -> None:
        """Train on the stream's images and labels, a step a batch, with the batch's statistics."""
        for _ in range(self._settings.passes):
            for images, labels in stream.batches(batch_size):
                batch = torch.from_numpy(images).permute(0, 3, 1, 2)
                with torch.enable_grad():
                    logits = self._run(batch)
                    target = torch.from_numpy(labels).to(logits.device)
                    loss = Loss(
                        total=F.cross_entropy(logits, target, ignore_index=-1),
                        entropy=entropy(logits).mean(),
                        selected=torch.tensor(len(labels)),
                    )
                found = gradient(loss, self._learner.parameters)
                self._learner.learn(found, images=len(labels), step=True)

    def _run(self, images: Tensor) -> Tensor:
        inputs = self.model.normalize(self.model.to_unit(images))
        look = self._statistics.look(len(inputs))
        return self.model.run(inputs, affine=self._learner.affine, look=look).logits

    @torch.no_grad()
    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        return Prediction.of(self._run(images))

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        return Adaptation(drift=self.drift)
