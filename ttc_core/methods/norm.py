"""NORM: the statistics of the test batch in place of the source's. No learning.

Source: Schneider et al., "Improving robustness against common corruptions by covariate shift
adaptation", NeurIPS 2020; METHOD §1.2.
"""

from typing import Any, ClassVar, Self

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from ttc_core.methods.contract import Adaptation, Pending, Prediction, State, UnsuitableNetworkError
from ttc_core.methods.settings import StatisticsSettings
from ttc_core.methods.source import unselected_prediction
from ttc_core.methods.views import stream_statistics, two_views
from ttc_core.model import SourceModel


class NormSettings(StatisticsSettings):
    """NORM's hyperparameters."""

    source_images: NonNegativeInt = Field(
        0, description="images the source's statistics are worth beside a batch (n_s)"
    )
    flip: bool = Field(False, description="average the answer with the mirrored image's")


class Norm:
    """Answer with statistics of the batch, or ones that follow the stream; parameters stay."""

    adapts: ClassVar[frozenset[str]] = frozenset({"moments"})
    Settings: ClassVar[type[NormSettings]] = NormSettings
    selects: ClassVar[bool] = False
    version = pending_batches = 0
    drift = 0.0

    def __init__(self, model: SourceModel, **settings: Any) -> None:
        self._settings = self.Settings.create("norm", model.classes, settings)
        self.model = model
        if not model.batch_norms:
            raise UnsuitableNetworkError(
                "norm needs BatchNorm layers that keep running statistics; the network has none."
            )
        self._statistics = stream_statistics(
            model, self._settings, source_images=self._settings.source_images
        )

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

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
        return unselected_prediction(logits, Pending(share=self._statistics.share(look)))

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        if not prediction.can_teach():
            return Adaptation(skipped="non_finite")
        self._statistics.commit(prediction.pending.share)
        return Adaptation()

    def reset(self) -> None:
        self._statistics.reset()

    def state(self) -> State:
        return {"moments": self._statistics.state()}

    def restore(self, state: State) -> None:
        self._statistics.restore(state["moments"])

    def fork(self) -> Self:
        return type(self)(self.model, **self.settings)
