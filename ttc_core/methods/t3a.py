"""T3A: answer by the nearest of class prototypes, which confident features of the stream adjust.

No gradient; the network stays, its last layer is replaced by the prototypes. Source: Iwasawa and
Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization",
NeurIPS 2021; METHOD §1.4. The batch's own features count in its answer.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ttc_core.envelope.limits import OutsideEnvelopeError
from ttc_core.methods.composed import StatisticsMethod
from ttc_core.methods.contract import Adaptation, Prediction, State
from ttc_core.methods.parts import Part
from ttc_core.methods.parts.memory import SupportMemory, Supports, SupportsPending
from ttc_core.methods.settings import StatisticsSettings, StatisticsSource


def _some(count: int) -> int:
    if count == 0:
        raise ValueError("no support would be left; 1 or more are accepted, or -1 for all")
    return count


class T3ASettings(StatisticsSettings):
    """T3A's hyperparameters."""

    statistics: StatisticsSource = Field(
        "source", description="source (its authors), batch, moving"
    )
    filter: Annotated[int, AfterValidator(_some)] = Field(
        100, ge=-1, description="supports a class keeps (M); -1: all"
    )


class T3A(StatisticsMethod):
    """Prototypes in place of the last layer; adapting files the batch's features."""

    name = "t3a"
    adapts = frozenset({"supports", "moments"})
    Settings = T3ASettings
    _settings: T3ASettings

    @cached_property
    def _first_supports(self) -> Supports:
        """Read from the head once; forks share them."""
        return Supports.of_head(self.model)

    def _compose(self) -> Sequence[Part]:
        self._memory = SupportMemory(
            self._first_supports, self.model.classes, self._settings.filter
        )
        return (*super()._compose(), self._memory)

    @torch.no_grad()
    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        inputs = self.model.normalize(self.model.to_unit(images))
        look = self._statistics.look(len(inputs))
        output = self.model.run(inputs, look=look)
        # A row that is no number must not become the prototype of others.
        sound = output.logits.isfinite().all(dim=1) & output.features.isfinite().all(dim=1)
        sound &= self._limits.head_may_move
        own = Supports.of(output.features[sound], output.logits[sound])
        prototypes = self._memory.with_batch(own).prototypes(self.model.classes)
        pending = SupportsPending(share=self._statistics.share(look), supports=own)
        return Prediction.of(output.features @ prototypes.T, pending=pending)

    def _learn(self, prediction: Prediction) -> Adaptation:
        if not self._limits.head_may_move:  # prototypes stand in the place of its weight
            self._ledger.dropped("parameters")
        return super()._learn(prediction)

    def restore(self, state: State) -> None:
        super().restore(state)
        if not (self._limits.head_may_move or self._memory.is_at_source):
            raise OutsideEnvelopeError(
                f"its prototypes moved, and the envelope does not name {self.model.split}.weight"
            )
