"""TENT: minimise the entropy of the answers, batch by batch.

Source: Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021;
METHOD §1.3. `flip` averages the answer (not the loss) with the mirrored image's.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.methods.affine import AffineMethod, Loss
from ttc_core.methods.contract import Prediction
from ttc_core.methods.settings import OptimizerSettings
from ttc_core.methods.views import two_views
from ttc_core.normalization import Look
from ttc_core.objective import entropy


class TentSettings(OptimizerSettings):
    """TENT's hyperparameters."""

    flip: bool = Field(False, description="average the answer with the mirrored image's")


class Tent(AffineMethod):
    """One step on the mean entropy of each batch, after it is answered."""

    name: ClassVar[str] = "tent"
    Settings: ClassVar[type[TentSettings]] = TentSettings
    _settings: TentSettings

    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        inputs = self.model.normalize(self.model.to_unit(images))
        look = self._statistics.look(len(inputs))
        with torch.set_grad_enabled(learn):
            logits, answer = self._answer(inputs, look)
            entropies = entropy(logits)
        given = answer.detach()
        return Prediction(
            logits=given,
            probabilities=given.softmax(dim=1),
            entropy=entropies.detach() if answer is logits else entropy(given),
            selected=torch.ones(len(logits), dtype=torch.bool, device=logits.device),
            version=self.version,
            pending=self._pending(entropies, look, learn=learn),
        )

    def _answer(self, inputs: Tensor, look: Look) -> tuple[Tensor, Tensor]:
        """The logits that are learned from, and those that are given out."""
        affine = self._learner.parameters
        if self._settings.flip and self._statistics.moves:
            plain, mirrored = two_views(
                self.model, inputs, inputs.flip(3), look, affine=affine, together=True
            )
            return plain.logits, (plain.logits + mirrored.logits) / 2
        logits = self.model.run(inputs, affine=affine, look=look).logits
        if not self._settings.flip:
            return logits, logits
        with torch.no_grad():
            other = self.model.run(inputs.flip(3), affine=affine, look=look).logits
        return logits, (logits + other) / 2

    def _loss(self, prediction: Prediction) -> Loss:
        assert prediction.pending.entropy is not None
        loss = prediction.pending.entropy.mean()
        return Loss(total=loss, entropy=loss, selected=prediction.selected.sum())
