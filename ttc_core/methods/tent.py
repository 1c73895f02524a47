"""TENT: minimise the entropy of the answers, batch by batch.

Source: Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021;
METHOD §1.3. `flip` averages the answer (not the loss) with the mirrored image's.
"""

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.methods.composed import AffineMethod
from ttc_core.methods.contract import Prediction
from ttc_core.methods.parts.gradient import Loss
from ttc_core.methods.parts.views import two_views
from ttc_core.methods.settings import AffineSettings
from ttc_core.normalization import Look
from ttc_core.objective import entropy


class TentSettings(AffineSettings):
    """TENT's hyperparameters."""

    flip: bool = Field(False, description="average the answer with the mirrored image's")


class Tent(AffineMethod):
    """One step on the mean entropy of each batch, after it is answered."""

    name = "tent"
    Settings = TentSettings
    _settings: TentSettings

    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        inputs = self.model.normalize(self.model.to_unit(images))
        look = self._statistics.look(len(inputs))
        with torch.set_grad_enabled(learn):
            logits, answer = self._answer(inputs, look)
            entropies = entropy(logits)
        return self._answered(logits, entropies, None, look, learn=learn, answer=answer)

    def _answer(self, inputs: Tensor, look: Look) -> tuple[Tensor, Tensor | None]:
        """The logits that are learned from, and those that are given out where they differ."""
        affine = self._learner.affine
        if not self._settings.flip:
            return self.model.run(inputs, affine=affine, look=look).logits, None
        mirrored = inputs.flip(3)
        if self._statistics.moves:
            plain, other = two_views(
                self.model, inputs, mirrored, look, affine=affine, together=True
            )
            return plain.logits, (plain.logits + other.logits) / 2
        logits = self.model.run(inputs, affine=affine, look=look).logits
        with torch.no_grad():
            others = self.model.run(mirrored, affine=affine, look=look).logits
        return logits, (logits + others) / 2

    def _loss(self, prediction: Prediction) -> Loss:
        assert prediction.pending.entropy is not None
        loss = prediction.pending.entropy.mean()
        return Loss(total=loss, entropy=loss, selected=prediction.selected.sum())
