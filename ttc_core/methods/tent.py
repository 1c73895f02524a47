"""TENT: minimise the entropy of the answers, batch by batch.

Source: Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021;
METHOD §1.3. `flip` averages the answer (not the loss) with the mirrored image's.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.methods.affine import AffineMethod, Loss
from ttc_core.methods.contract import Pending, Prediction
from ttc_core.methods.settings import OptimizerSettings
from ttc_core.methods.views import two_views
from ttc_core.objective import entropy


class TentSettings(OptimizerSettings):
    """TENT's hyperparameters."""

    flip: bool = Field(False, description="average the answer with the mirrored image's")


class Tent(AffineMethod):
    """One step on the mean entropy of each batch, after it is answered."""

    name: ClassVar[str] = "tent"
    Settings: ClassVar[type[TentSettings]] = TentSettings
    _settings: TentSettings

    @torch.enable_grad()
    def predict(self, images: Tensor) -> Prediction:
        inputs = self.model.normalize(self.model.to_unit(images))
        look = self._statistics.look(len(inputs))
        affine = self._learner.parameters
        if not self._settings.flip:
            logits = answer = self.model.run(inputs, affine=affine, look=look).logits
        elif self._statistics.moves:
            plain, mirrored = two_views(
                self.model, inputs, inputs.flip(3), look, affine=affine, together=True
            )
            logits, answer = plain.logits, (plain.logits + mirrored.logits) / 2
        else:
            logits = self.model.run(inputs, affine=affine, look=look).logits
            with torch.no_grad():
                other = self.model.run(inputs.flip(3), affine=affine, look=look).logits
            answer = (logits + other) / 2
        entropies = entropy(logits)
        answer = answer.detach()
        return Prediction(
            logits=answer,
            probabilities=answer.softmax(dim=1),
            entropy=entropies.detach() if answer is logits else entropy(answer),
            selected=torch.ones(len(logits), dtype=torch.bool, device=logits.device),
            version=self.version,
            pending=Pending(
                parameters=tuple(affine.values()),
                entropy=entropies,
                share=self._statistics.share(look),
            ),
        )

    def _loss(self, prediction: Prediction) -> Loss:
        assert prediction.pending.entropy is not None
        loss = prediction.pending.entropy.mean()
        return Loss(total=loss, entropy=loss, selected=prediction.selected.sum())
