"""TIPI: keep the answers the same under the small perturbation that would change them most.

Source: Nguyen et al., "TIPI: Test Time Adaptation with Transformation Invariance", CVPR 2023;
METHOD §1.6. Its authors answer after the step (`answer=after`); the default here is before it,
like all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveInt
from torch import Tensor

from ttc_core.methods.composed import AffineMethod
from ttc_core.methods.contract import Pending, Prediction
from ttc_core.methods.parts import Part
from ttc_core.methods.parts.gradient import Gradient, Loss, differentiated
from ttc_core.methods.parts.memory import LearnedBatches
from ttc_core.methods.settings import (
    CIFAR100_CLASSES,
    IMAGENET_CLASSES,
    LARGEST_SEED,
    AffineSettings,
    none_as_text,
)
from ttc_core.normalization import Look
from ttc_core.objective import divergence, entropy


class TipiSettings(AffineSettings):
    """TIPI's hyperparameters. The learning rate is stated for batches of `lr_images`."""

    epsilon: float = Field(
        2 / 255, gt=0, description="size of the perturbation, of images in [0, 1]"
    )
    start: Literal["random", "zero"] = Field(
        "random", description="where the perturbation is sought from; zero: as released for CIFAR"
    )
    entropy_weight: float = Field(0.0, ge=0, description="of the entropy beside the KL (β)")
    lr_images: Annotated[PositiveInt | None, BeforeValidator(none_as_text)] = Field(
        200, description="a batch of N steps with lr·N/lr_images; None: with lr"
    )
    answer: Literal["before", "after"] = Field(
        "before", description="the step; after it is what its authors do"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="of the random start")

    @classmethod
    def defaults(cls, classes: int, given: dict[str, Any]) -> dict[str, Any]:
        shared = super().defaults(classes, given)
        weight = 1.0 if classes >= IMAGENET_CLASSES else 5.0 if classes >= CIFAR100_CLASSES else 0.0
        lr_images = 64 if shared["optimizer"] == "sgd" else 200
        # A learning rate that is asked for is meant as it is.
        return {
            **shared,
            "entropy_weight": weight,
            "lr_images": None if "lr" in given else lr_images,
        }


@dataclass(frozen=True, kw_only=True)
class TipiPending(Pending):
    """The answer to the images, with its graph, and what perturbed ones are answered with.

    Attributes:
        look: where passes over the perturbed images take their statistics from.
        start, direction: given from outside, or None.
        gradient: taken already, where the answer is the one after the step.
    """

    logits: Tensor
    look: Look
    start: Tensor | None
    direction: Tensor | None
    gradient: Gradient | None = None


class Tipi(AffineMethod):
    """One step on the divergence of perturbed answers from the plain ones, batch by batch."""

    name = "tipi"
    Settings = TipiSettings
    _settings: TipiSettings

    def _compose(self) -> Sequence[Part]:
        self._learned_batches = LearnedBatches()
        return (*super()._compose(), self._learned_batches)

    def predict(
        self,
        images: Tensor,
        *,
        learn: bool = True,
        start: Tensor | None = None,
        direction: Tensor | None = None,
    ) -> Prediction:
        """Answer images (N, 3, H, W).

        Args:
            start: (N, 3, H, W), where the perturbation of images in [0, 1] is sought from, in
                place of what the settings say.
            direction: (N, 3, H, W) in {−1, 0, 1}, which way it goes, in place of the sign of the
                gradient there. With a start of zero that sign is rounding noise.
        """
        unit = self.model.to_unit(images)
        if unit is images and learn:
            unit = unit.clone()  # adapting reads it again, whatever became of the caller's by then
        look = self._statistics.look(len(unit))
        # Without the entropy's share the answer itself is a constant of the loss.
        answers_after = self._settings.answer == "after"
        with torch.set_grad_enabled((learn or answers_after) and self._settings.entropy_weight > 0):
            logits = self._run(self._learner.parameters, look, unit)
        pending = TipiPending(
            parameters=self._learner.parameters,
            share=self._statistics.share(look),
            images=unit,
            logits=logits,
            look=self._statistics.repeated(look),
            start=start,
            direction=direction,
        )
        prediction = self._prediction(logits, pending)
        if answers_after and prediction.can_teach():
            prediction = self._answered_after_the_step(prediction, pending)
        if learn:
            return prediction
        return replace(prediction, pending=Pending(share=pending.share))

    def _prediction(self, logits: Tensor, pending: Pending) -> Prediction:
        everything = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return Prediction.of(logits, selected=everything, version=self.version, pending=pending)

    @torch.no_grad()
    def _answered_after_the_step(self, prediction: Prediction, pending: TipiPending) -> Prediction:
        """Make the step on a copy and answer with it; adapting will make it for good."""
        found = self._gradient(prediction)
        images = len(prediction)
        stepped = self._learner.copy()
        stepped.learn(found, images=images, step=True, answered=images, lr=self._rate(images))
        assert pending.images is not None
        logits = self._run(stepped.parameters, pending.look, pending.images)
        return self._prediction(logits, replace(pending, gradient=found))

    def _gradient(self, prediction: Prediction) -> Gradient:
        pending = prediction.pending
        assert isinstance(pending, TipiPending)
        if pending.gradient is None:
            return super()._gradient(prediction)
        if not prediction.selected.any():
            return replace(pending.gradient, selected=0, skipped="none_selected")
        return pending.gradient

    def _loss(self, prediction: Prediction) -> Loss:
        pending = prediction.pending
        assert isinstance(pending, TipiPending)
        assert pending.images is not None
        assert pending.parameters is not None
        plain = pending.logits
        # Not clipped to [0, 1], as its authors do not.
        perturbed = pending.images + self._perturbation(pending, pending.images, plain.detach())
        logits = self._run(pending.parameters, pending.look, perturbed)
        loss = divergence(logits, plain.detach()).mean()
        entropy_term = entropy(plain).mean()
        weight = self._settings.entropy_weight
        return Loss(
            total=loss + weight * entropy_term if weight else loss,
            entropy=entropy_term,
            similarity=loss,
            selected=prediction.selected.sum(),
        )

    def _run(self, parameters: Tensor, look: Look, images: Tensor) -> Tensor:
        """Logits (N, K) of images in [0, 1]."""
        affine = self.model.affine_layout.views(parameters)
        return self.model.run(self.model.normalize(images), affine=affine, look=look).logits

    def _perturbation(self, pending: TipiPending, images: Tensor, plain: Tensor) -> Tensor:
        """Steps 2 to 4 of METHOD §1.6: from the start, ε towards the largest divergence."""
        epsilon = self._settings.epsilon
        start = self._start(images) if pending.start is None else pending.start
        start = start.to(images)
        direction = pending.direction
        if direction is None:
            assert pending.parameters is not None
            moved = start.clone().requires_grad_()
            logits = self._run(pending.parameters, pending.look, images + moved)
            slope = differentiated(divergence(logits, plain).mean(), moved, "the images")
            direction = slope.sign()
        return (start + epsilon * direction.to(start)).clamp(-epsilon, epsilon)

    def _start(self, inputs: Tensor) -> Tensor:
        if self._settings.start == "zero":
            return torch.zeros_like(inputs)
        seed = self._settings.seed + self._learned_batches.count
        draws = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(seed))
        return (2 * draws - 1) * self._settings.epsilon

    def _rate(self, images: int) -> float:
        s = self._settings
        return s.lr if s.lr_images is None else s.lr * images / s.lr_images
