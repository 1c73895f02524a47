"""SOURCE: the model as it came, the figure every adaptation has to beat."""

import torch
from torch import Tensor

from ttc_core.methods.composed import ComposedMethod
from ttc_core.methods.contract import Prediction
from ttc_core.methods.settings import MethodSettings


class SourceSettings(MethodSettings):
    """SOURCE has none."""


class Source(ComposedMethod):
    """Answer with the source's own parameters and running statistics. METHOD §1.1."""

    name = "source"
    Settings = SourceSettings

    @torch.no_grad()
    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        return Prediction.of(
            self.model.run(self.model.normalize(self.model.to_unit(images))).logits
        )
