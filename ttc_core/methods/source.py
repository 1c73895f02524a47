"""SOURCE: the model as it came, the figure every adaptation has to beat."""

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.methods.composed import ComposedMethod
from ttc_core.methods.contract import Prediction
from ttc_core.methods.settings import MethodSettings


class SourceSettings(MethodSettings):
    """SOURCE's only choice."""

    flip: bool = Field(False, description="average the answer with the mirrored image's")


class Source(ComposedMethod):
    """Answer with the source's own parameters and running statistics. METHOD §1.1."""

    name = "source"
    Settings = SourceSettings
    _settings: SourceSettings

    @torch.no_grad()
    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        inputs = self.model.normalize(self.model.to_unit(images))
        logits = self.model.run(inputs).logits
        if self._settings.flip:
            logits = (logits + self.model.run(inputs.flip(3)).logits) / 2
        return Prediction.of(logits)
