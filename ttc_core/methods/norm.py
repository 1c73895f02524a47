"""NORM: the statistics of the test batch in place of the source's. No learning.

Source: Schneider et al., "Improving robustness against common corruptions by covariate shift
adaptation", NeurIPS 2020; METHOD §1.2.
"""

from collections.abc import Sequence

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from ttc_core.methods.composed import StatisticsMethod
from ttc_core.methods.contract import Pending, Prediction, UnsuitableNetworkError
from ttc_core.methods.parts import Part
from ttc_core.methods.parts.views import two_views
from ttc_core.methods.settings import StatisticsSettings


class NormSettings(StatisticsSettings):
    """NORM's hyperparameters."""

    source_images: NonNegativeInt = Field(
        0, description="images the source's statistics are worth beside a batch (n_s)"
    )
    flip: bool = Field(False, description="average the answer with the mirrored image's")

    @property
    def prior_images(self) -> int:
        return self.source_images


class Norm(StatisticsMethod):
    """Answer with statistics of the batch, or ones that follow the stream; parameters stay."""

    name = "norm"
    Settings = NormSettings
    _settings: NormSettings

    def _compose(self) -> Sequence[Part]:
        if not self.model.batch_norms:
            raise UnsuitableNetworkError(
                "norm needs BatchNorm layers that keep running statistics; the network has none."
            )
        return super()._compose()

    @torch.no_grad()
    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        inputs = self.model.normalize(self.model.to_unit(images))
        look = self._statistics.look(len(inputs))
        if self._settings.flip:
            plain, mirrored = two_views(
                self.model, inputs, inputs.flip(3), look, together=self._statistics.moves
            )
            logits = (plain.logits + mirrored.logits) / 2
        else:
            logits = self.model.run(inputs, look=look).logits
        return Prediction.of(logits, pending=Pending(share=self._statistics.share(look)))
