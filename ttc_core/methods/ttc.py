"""TTC, Test-Time Clustering: entropy of the confident images, under a similarity constraint.

Four parts, each with a switch; with all of them off TENT remains:
- RLA: the answer, and the entropy, are those of two views averaged (image and mirror image);
- SPC: the two views' answers are pulled together where their features are alike;
- SS: only images whose entropy is at most the batch's mean are learned from;
- GA: gradients add up over about 200 images before each step.

Source: Lin et al., "Improving Entropy-Based Test-Time Adaptation from a Clustering View",
Eq. 7-13 and Algorithm 1; METHOD §1.7, with its ambiguities in §2.
"""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ttc_core.methods.affine import AffineLearner
from ttc_core.methods.augmentation import augment
from ttc_core.methods.contract import Adaptation, Pending, Prediction, State
from ttc_core.methods.settings import TTCSettings
from ttc_core.methods.views import stream_statistics, two_views
from ttc_core.model import Output, SourceModel
from ttc_core.objective import entropy, select_confident, similarity_constraint


class TTC:
    """Predict with two views averaged; adapt on the selected images, every few batches."""

    adapts: ClassVar[frozenset[str]] = frozenset({"affine", "moments"})
    Settings: ClassVar[type[TTCSettings]] = TTCSettings
    selects: ClassVar[bool] = True

    def __init__(self, model: SourceModel, **settings: Any) -> None:
        self._settings = self.Settings.create("ttc", model.classes, settings)
        self.model = model
        self._statistics = stream_statistics(model, self._settings)
        self._learner = AffineLearner(model, self._settings)
        self._learned_batches = 0

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
        s = self._settings
        look = self._statistics.look(len(images))
        view, second = self._views(images, look)
        logits = view.logits
        if s.rla:
            assert second is not None
            logits = _average(view.logits, second.logits, s.average)
        entropies = entropy(logits)
        similarity = None
        if s.spc:
            assert second is not None
            similarity = self._similarity(view, second)
        answer = logits.detach()
        selected = (
            select_confident(entropies.detach())
            if s.ss
            else torch.ones(len(answer), dtype=torch.bool, device=answer.device)
        )
        return Prediction(
            logits=answer,
            probabilities=answer.softmax(dim=1),
            entropy=entropies.detach(),
            selected=selected,
            version=self.version,
            pending=Pending(
                parameters=tuple(self._learner.parameters.values()),
                entropy=entropies,
                similarity=similarity,
                share=self._statistics.share(look),
            ),
        )

    def _views(self, images: Tensor, look: Any) -> tuple[Output, Output | None]:
        """Run the image, and the second view if a part of the method wants it."""
        s, model, affine = self._settings, self.model, self._learner.parameters
        unit = model.to_unit(images)
        if not (s.rla or s.spc):
            return model.run(model.normalize(unit), affine=affine, look=look), None
        # Each batch draws anew, yet predicting twice draws the same.
        other = augment(unit, s.augmentation, seed=s.seed + self._learned_batches)
        return two_views(
            model,
            model.normalize(unit),
            model.normalize(other),
            look,
            affine=affine,
            together=self._statistics.moves or s.views == "concatenated",
        )

    def _similarity(self, view: Output, second: Output) -> Tensor:
        s = self._settings
        answers = (view.logits, second.logits)
        if s.spc_on == "probabilities":
            answers = (view.logits.softmax(dim=1), second.logits.softmax(dim=1))
        return similarity_constraint(
            *answers, view.features, second.features, sigma=s.sigma, kappa_detach=s.kappa_detach
        )

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        if not prediction.is_finite():
            return Adaptation(skipped="non_finite", drift=self.drift)
        pending = prediction.pending
        if not learn:
            self._statistics.commit(pending.share)
            return Adaptation(skipped="shed", drift=self.drift)
        with torch.enable_grad():
            loss, entropy_term, similarity_term = self._loss(prediction)
        outcome = self._learner.learn(
            loss=loss,
            entropy=entropy_term,
            similarity=similarity_term,
            selected=prediction.selected.sum(),
            parameters=pending.parameters,
            images=len(prediction),
            step=self._step_is_due(len(prediction)),
        )
        if outcome.skipped != "non_finite":
            self._statistics.commit(pending.share)
        if outcome.skipped is None:
            self._learned_batches += 1
        return outcome

    def _loss(self, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss of Algorithm 1, and its two terms."""
        s, pending, selected = self._settings, prediction.pending, prediction.selected
        assert pending.entropy is not None
        per_image = pending.entropy
        similarity_term = None
        if pending.similarity is not None:
            per_image = per_image + pending.similarity
            similarity_term = pending.similarity[selected].mean()
        if s.mean_over == "selected":
            loss = per_image[selected].mean()
        else:
            loss = per_image[selected].sum() / len(prediction)
        if s.accumulate_mean:
            loss = loss / self._batches_per_step(len(prediction))
        return loss, pending.entropy[selected].mean(), similarity_term

    def _batches_per_step(self, images: int) -> int:
        """Q for batches of this size: round(samples_per_step / N), halves down, at least 1."""
        if not self._settings.ga:
            return 1
        return max(1, -(-(2 * self._settings.samples_per_step - images) // (2 * images)))

    def _step_is_due(self, images: int) -> bool:
        """Whether the batch at hand completes an accumulation (METHOD §2.3 and §2.5)."""
        s = self._settings
        if not s.ga or (s.counter_start == 0 and self._learned_batches == 0):
            return True
        return self._learner.pending_images + images + images / 2 >= s.samples_per_step

    def end(self) -> bool:
        """The stream is over: step on what waits, if `flush_at_end` says so; return whether."""
        due = self._settings.flush_at_end and self._learner.pending_batches > 0
        if due:
            self._learner.step()
        return due

    def reset(self) -> None:
        self._learner.reset()
        self._statistics.reset()
        self._learned_batches = 0

    def state(self) -> State:
        state = {**self._learner.state(), "moments": self._statistics.state()}
        state["counters"]["learned_batches"] = self._learned_batches
        return state

    def restore(self, state: State) -> None:
        self._learner.restore(state)
        self._statistics.restore(state["moments"])
        self._learned_batches = int(state["counters"]["learned_batches"])

    def fork(self) -> Self:
        return type(self)(self.model, **self.settings)


def _average(logits: Tensor, others: Tensor, of: str) -> Tensor:
    """RLA (Eq. 7): the mean of the two views' logits, or the log of their mean probabilities."""
    if of == "logits":
        return (logits + others) / 2
    mean = (logits.softmax(dim=1) + others.softmax(dim=1)) / 2
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()  # log 0 would make nan of 0·log 0
