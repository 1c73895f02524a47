"""SOURCE: the model as it came, the figure every adaptation has to beat."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ttc_core.methods.contract import Adaptation, Pending, Prediction, State
from ttc_core.methods.settings import MethodSettings
from ttc_core.model import SourceModel
from ttc_core.objective import entropy


class SourceSettings(MethodSettings):
    """SOURCE has none."""


class Source:
    """Answer with the source's own parameters and running statistics. METHOD §1.1."""

    adapts: ClassVar[frozenset[str]] = frozenset()
    Settings: ClassVar[type[SourceSettings]] = SourceSettings
    selects: ClassVar[bool] = False
    version = pending_batches = 0
    drift = 0.0

    def __init__(self, model: SourceModel, **settings: Any) -> None:
        self.Settings.create("source", model.classes, settings)
        self.model = model
        self.settings: Mapping[str, Any] = {}

    @torch.no_grad()
    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        logits = self.model.run(self.model.normalize(self.model.to_unit(images))).logits
        return unselected_prediction(logits)

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        return Adaptation()

    def reset(self) -> None:
        """Nothing has moved."""

    def state(self) -> State:
        return {}

    def restore(self, state: State) -> None:
        """Nothing has moved."""

    def fork(self) -> Self:
        return type(self)(self.model)


def unselected_prediction(logits: Tensor, pending: Pending | None = None) -> Prediction:
    """The prediction of a method that selects no image to learn from."""
    return Prediction(
        logits=logits,
        probabilities=logits.softmax(dim=1),
        entropy=entropy(logits),
        selected=torch.zeros(len(logits), dtype=torch.bool, device=logits.device),
        version=0,
        pending=pending or Pending(),
    )
