"""TTC for a camera's stream: the service's default.

It is TTC in kind: the answer of image and mirror image, averaged, before anything is learned from
it; the entropy of the confident ones minimised, gradients added up over many images before a step
of the optimizer. What it has besides makes it hold on streams whose images come one by one, in
runs, of few classes, or under changing light:
- statistics that follow the stream: early layers fast, late ones with every class counting alike
  and only once the answers have been diverse (`stream_statistics`, `diversity`); where light or
  weather change they start anew, or from where they were when these were last seen (`conditions`);
  where the source is surer of the same images, they keep near to it (`shadow`);
- a prior from the images just before, which has to earn its weight (`prior`), anew where they begin
  to look other (`scene`);
- the mirror image is left out where it means something else (`second_view`);
- what is told is as sure as it is right, as far as one can see (`temperature`).
METHOD §1.9.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.methods.composed import LearningMethod, StatisticsMethod
from ttc_core.methods.contract import Adaptation, Beside, Pending, Prediction
from ttc_core.methods.parts import Numbers, Part
from ttc_core.methods.parts.conditions import Conditions
from ttc_core.methods.parts.diversity import Classes, Diversity
from ttc_core.methods.parts.gradient import Loss
from ttc_core.methods.parts.prior import Context, TemporalPrior
from ttc_core.methods.parts.scene import Scene, Scenes
from ttc_core.methods.parts.second_view import Bet, SecondView
from ttc_core.methods.parts.shadow import Compared, Shadow, answers_to
from ttc_core.methods.parts.stream_statistics import StreamLook, StreamStatistics
from ttc_core.methods.parts.temperature import Temperature
from ttc_core.methods.parts.views import two_views
from ttc_core.methods.settings import CIFAR100_CLASSES, OptimizerSettings
from ttc_core.objective import entropy

# A batch is answered again if within it late layers open by so much, or the stream loses so much
# trust.
SUDDENLY = 0.25
# The first part of the layers keeps its scales and shifts: a gradient's longest way, for little.
LEARNED_FROM = 0.25
# Adam's learning rate.
LEARNING_RATE = 2e-3
# The images over which what was learned fades to 1 / e of it.
FADES = 500


class TTCStreamSettings(OptimizerSettings):
    """None of them should need tuning; each is there to be varied."""

    blend: float = Field(0.7, ge=0, le=1, description="the stream's part of the statistics")
    early_horizon: int = Field(50, ge=1, description="images that early layers' moments run over")
    late_horizon: int = Field(400, ge=1, description="images that late layers' moments run over")
    window: int = Field(
        64, ge=1, le=1_000_000, description="images that the classes' frequencies run over"
    )
    samples_per_step: int = Field(50, ge=1, description="images learned from between two steps")
    entropy_fraction: float = Field(0.8, gt=0, description="of ln K: above it nothing is learned")
    prior: bool = Field(
        True, description="let the images before weigh in the answer; off from 100 classes on"
    )
    learn: Literal["diverse", "always", "never"] = Field(
        "diverse", description="move scales and shifts: while the answers are diverse, or forced"
    )
    second_view: Literal["auto", "on", "off"] = Field(
        "auto", description="average with the mirror image: as long as it means the same, or forced"
    )

    @classmethod
    def defaults(cls, classes: int, given: dict[str, Any]) -> dict[str, Any]:
        # With many classes few images repeat one, and neighbours that look alike are no evidence.
        found = {**super().defaults(classes, given), "prior": classes < CIFAR100_CLASSES}
        return found if found["optimizer"] == "sgd" else {**found, "lr": LEARNING_RATE}


@dataclass(frozen=True)
class _Seen:
    """Images looked at: logits and answers, (N, K) each, the prior's weight in each, and what parts
    would be afterwards."""

    logits: Tensor
    answers: Tensor
    weights: Numbers
    context: Context
    scene: Scene
    classes: Classes
    bet: Bet
    compared: Compared
    look: StreamLook


class TTCStream(LearningMethod):
    """Predict with two views averaged, in the light of the images before; adapt with care."""

    name = "ttc_stream"
    Settings = TTCStreamSettings
    learned_from = LEARNED_FROM
    _settings: TTCStreamSettings

    def _compose(self) -> Sequence[Part]:
        s = self._settings
        self._statistics = StreamStatistics(
            self.model,
            blend=s.blend,
            early_horizon=s.early_horizon,
            late_horizon=s.late_horizon,
            limits=self._limits,
            ledger=self._ledger,
        )
        self._shadow = Shadow(self.model)
        self._diversity = Diversity(self.model, s.window)
        self._prior = TemporalPrior(self.model.classes)
        self._conditions = Conditions(
            self.model, self._statistics, self._shadow, self._diversity, self._prior
        )
        self._scenes = Scenes(self.model)
        self._second_view = SecondView(s.second_view)
        self._temperature = Temperature(self.record_temperature)
        if s.learn == "never":
            self.adapts = StatisticsMethod.adapts
        return (
            *super()._compose(),
            self._shadow,
            self._diversity,
            self._prior,
            self._conditions,
            self._statistics,
            self._scenes,
            self._second_view,
            self._temperature,
        )

    @property
    def contextual(self) -> bool:
        return self._settings.prior

    @property
    def second_view_off(self) -> bool:
        return self._second_view.bet.lost

    @property
    def looks_twice(self) -> bool:
        return self._second_view.used

    @property
    def record_temperature(self) -> float | None:
        record = self.model.calibration
        return None if record is None else record.temperature

    @property
    def details(self) -> Mapping[str, float]:
        """How far late layers follow the stream and what the images before weigh, 0 to 1 each; how
        many conditions are known; by how much the source is surer of the same images (`Shadow`);
        what the logarithms of answers are divided by (`Temperature`)."""
        weight = self._prior.weight if self.contextual else 0.0
        return {
            "late_layers": self._diversity.classes.opening,
            "images_before": weight,
            "conditions": self._conditions.known,
            "doubt": self._shadow.doubt,
            "temperature": self._temperature.at(weight, self._temperature.changed),
        }

    def predict(
        self,
        images: Tensor,
        *,
        learn: bool = True,
        context: Sequence[bool] | None = None,
        second_view: bool = True,
    ) -> Prediction:
        if context is not None and len(context) != len(images):
            raise ValueError(
                f"context has {len(context)} truth values for {len(images)} images; it takes one "
                "for each"
            )
        s, opening = self._settings, self._diversity.classes.opening
        teaches = s.learn == "always" or (s.learn == "diverse" and self._diversity.classes.diverse)
        twice = second_view and self.looks_twice
        inputs = self.model.normalize(self.model.to_unit(images))
        shadow = self._shadow_of(inputs)
        trust = self._statistics.trust(self._shadow.doubt, self._statistics.followed)
        with torch.set_grad_enabled(learn and teaches):
            seen = self._look_at(inputs, opening, trust, shadow, context, twice)
            opened, trusted = seen.classes.opening, self._trust_after(seen, trust)
            if opened - opening > SUDDENLY or trust - trusted > SUDDENLY:
                del seen  # and its graph, before there is another
                seen = self._look_at(inputs, opened, trusted, shadow, context, twice)
            entropies = entropy(seen.logits)
        logits, answers = seen.logits.detach(), seen.answers
        told = self._temperature.told(answers, logits, seen.weights)
        # What the images before made of an answer is no evidence to learn from.
        selected = logits.argmax(dim=1) == answers.argmax(dim=1)
        selected &= entropies.detach() < s.entropy_fraction * math.log(self.model.classes)
        selected &= teaches
        return Prediction(
            logits=logits,
            probabilities=told.probabilities,
            entropy=torch.special.entr(told.probabilities).sum(dim=1),
            selected=selected,
            version=self.version,
            beside=shadow,
            pending=Pending(
                parameters=self._learner.parameters if learn else None,
                entropy=entropies,
                share=seen.look.share(),
                after={
                    "classes": seen.classes,
                    "context": seen.context,
                    "diverse": self._diversity.classes.diverse,
                    "scene": seen.scene,
                    "second_view": seen.bet,
                    "shadow": seen.compared,
                    "temperature": told.changed,
                },
            ),
        )

    def _trust_after(self, seen: _Seen, trust: float) -> float:
        """How far the stream is trusted once it has these images; it was `trust` before."""
        doubt = self._shadow.doubt_of(seen.compared)
        if doubt <= self._shadow.doubt:
            return trust
        followed = self._statistics.after(seen.look.share(), seen.classes)
        return self._statistics.trust(doubt, followed)

    def _shadow_of(self, inputs: Tensor) -> Beside:
        """The source's answers to some images."""
        # Where no statistics follow the stream nothing comes of doubt.
        follows = bool(self.model.batch_norms)
        chosen = self._shadow.chosen(len(inputs)) if follows else []
        return Beside(chosen, answers_to(self.model, inputs, chosen))

    def _look_at(
        self,
        inputs: Tensor,
        opening: float,
        trust: float,
        shadow: Beside,
        context: Sequence[bool] | None,
        twice: bool,
    ) -> _Seen:
        """Answer normalised images with late layers open, and the stream trusted, so far."""
        model, bet, affine = self.model, self._second_view.bet, self._learner.affine
        classes = self._diversity.classes
        look = self._statistics.look(len(inputs), classes, opening, trust)
        if twice:
            view, mirrored = two_views(
                model, inputs, inputs.flip(3), look, affine=affine, together=True
            )
            bet = self._second_view.after(view.logits, mirrored.logits)
            logits = view.logits if bet.suspicious else (view.logits + mirrored.logits) / 2
        else:
            view = model.run(inputs, affine=affine, look=look)
            logits = view.logits
        if trust == 1:
            following = view.logits.detach()[shadow.rows]
        else:
            wholly = self._statistics.look(len(shadow.rows), classes, opening, 1.0)
            following = answers_to(model, inputs, shadow.rows, affine=affine, look=wholly)
        entropies = (entropy(each).tolist() for each in (shadow.logits, following))
        compared = self._shadow.after(len(inputs), *entropies)
        if not self.contextual:
            context = [False] * len(inputs)
        scene, cuts = self._scenes.after(look.share(), context)
        answers, after, weights = self._prior.answers(logits, context, cuts)
        classes = self._diversity.after(answers)
        return _Seen(logits, answers, weights, after, scene, classes, bet, compared, look)

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        used = self._second_view.used
        outcome = super().adapt(prediction, learn=learn and self._settings.learn != "never")
        if used and not self._second_view.used:
            bet = self._second_view.bet
            self.reset()  # what mirror images have moved is wrong
            self._second_view.bet = bet
            return replace(outcome, drift=self.drift)
        return outcome

    def _learn(self, prediction: Prediction) -> Adaptation:
        # However long a stream, what was learned has a bound, and what one condition taught is gone
        # under the next, of which nothing may be learned: what was learned may be why.
        fade = -math.expm1(-len(prediction) / FADES)
        count = int(prediction.selected.sum())
        if count == 0:  # nor is there a graph, where no image may teach
            self._learner.fade(fade)
            return Adaptation(skipped="none_selected", drift=self.drift)
        due = self._learner.pending_images + count >= self._settings.samples_per_step
        gradient = self._gradient(prediction)
        answered = len(prediction)
        return self._learner.learn(gradient, images=count, step=due, answered=answered, fade=fade)

    def _loss(self, prediction: Prediction) -> Loss:
        s, pending, selected = self._settings, prediction.pending, prediction.selected
        assert pending.entropy is not None
        classes: Classes = pending.after["classes"]
        # What came too often counts less: minimised entropy makes it come more often still.
        importance = torch.from_numpy(classes.importance.clip(max=1) ** 2).to(pending.entropy)
        weights = importance[prediction.logits.argmax(dim=1)] * selected
        total = (weights * pending.entropy).sum() / s.samples_per_step
        mean = pending.entropy[selected].mean()
        return Loss(total, mean, selected.sum(), weights=weights)
