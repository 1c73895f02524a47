"""TENT: minimise the entropy of the answers, batch by batch.

Source: Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021;
METHOD §1.3. `flip` averages the answer (not the loss) with the mirrored image's.
"""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ttc_core.methods.affine import AffineLearner
from ttc_core.methods.contract import Adaptation, Pending, Prediction, State
from ttc_core.methods.settings import TentSettings
from ttc_core.methods.views import stream_statistics, two_views
from ttc_core.model import SourceModel
from ttc_core.objective import entropy


class Tent:
    """One step on the mean entropy of each batch, after it is answered."""

    adapts: ClassVar[frozenset[str]] = frozenset({"affine", "moments"})
    Settings: ClassVar[type[TentSettings]] = TentSettings
    selects: ClassVar[bool] = True

    def __init__(self, model: SourceModel, **settings: Any) -> None:
        self._settings = self.Settings.create("tent", model.classes, settings)
        self.model = model
        self._statistics = stream_statistics(model, self._settings)
        self._learner = AffineLearner(model, self._settings)

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    @property
    def version(self) -> int:
        return self._learner.steps

    @property
    def pending_batches(self) -> int:
        return self._learner.pending_batches

    @property
    def drift(self) -> float:
        return self._learner.drift

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

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        if not prediction.is_finite():
            return Adaptation(skipped="non_finite", drift=self.drift)
        pending = prediction.pending
        if not learn:
            self._statistics.commit(pending.share)
            return Adaptation(skipped="shed", drift=self.drift)
        assert pending.entropy is not None
        with torch.enable_grad():
            loss = pending.entropy.mean()
        outcome = self._learner.learn(
            loss=loss,
            entropy=loss,
            similarity=None,
            selected=prediction.selected.sum(),
            parameters=pending.parameters,
            images=len(prediction),
            step=True,
        )
        if outcome.skipped != "non_finite":
            self._statistics.commit(pending.share)
        return outcome

    def reset(self) -> None:
        self._learner.reset()
        self._statistics.reset()

    def state(self) -> State:
        return {**self._learner.state(), "moments": self._statistics.state()}

    def restore(self, state: State) -> None:
        self._learner.restore(state)
        self._statistics.restore(state["moments"])

    def fork(self) -> Self:
        return type(self)(self.model, **self.settings)
