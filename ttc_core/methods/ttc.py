"""TTC, Test-Time Clustering: entropy of the confident images, under a similarity constraint.

Four parts, each with a switch; with all of them off TENT remains:
- RLA: the answer, and the entropy, are those of two views averaged (image and mirror image);
- SPC: the two views' answers are pulled together where their features are alike;
- SS: only images whose entropy is at most the batch's mean are learned from;
- GA: gradients add up over about 200 images before each step.

Source: Lin et al., "Improving Entropy-Based Test-Time Adaptation from a Clustering View",
Eq. 7-13 and Algorithm 1; METHOD §1.7, with its ambiguities in §2.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ttc_core.methods.composed import AffineMethod
from ttc_core.methods.contract import Prediction
from ttc_core.methods.parts import Part
from ttc_core.methods.parts.augmentation import augment
from ttc_core.methods.parts.gradient import Loss
from ttc_core.methods.parts.memory import LearnedBatches
from ttc_core.methods.parts.views import two_views
from ttc_core.methods.settings import LARGEST_SEED, AffineSettings
from ttc_core.normalization import Look
from ttc_core.objective import entropy, select_confident, similarity_constraint
from ttc_core.running import Output

Augmentation = Literal[
    "horizontal_flip", "vertical_flip", "rotation", "resized_crop", "gaussian_noise"
]


class TTCSettings(AffineSettings):
    """TTC's hyperparameters and switches (METHOD §1.7 and §2)."""

    rla: bool = Field(True, description="average the two views (robust label assignment)")
    spc: bool = Field(True, description="similarity-preserving constraint")
    ss: bool = Field(True, description="learn from the confident images only (sample selection)")
    ga: bool = Field(True, description="accumulate gradients over several batches")
    augmentation: Augmentation = Field("horizontal_flip", description="what makes the second view")
    sigma: float = Field(1.0, gt=0, description="width of SPC's kernel, in units of the features")
    samples_per_step: int = Field(200, ge=1, description="images between two optimizer steps")
    mean_over: Literal["selected", "batch"] = Field("selected", description="the loss's divisor")
    accumulate_mean: bool = Field(False, description="average gradients over Q, not sum them")
    counter_start: int = Field(1, ge=0, le=1, description="0: the first batch steps at once")
    flush_at_end: bool = Field(False, description="step on what is pending when a stream ends")
    average: Literal["logits", "probabilities"] = Field("logits", description="what RLA averages")
    spc_on: Literal["logits", "probabilities"] = Field("logits", description="what SPC compares")
    kappa_detach: bool = Field(False, description="no gradient through SPC's kernel")
    views: Literal["separate", "concatenated"] = Field(
        "separate", description="two forward passes, or one of both views (statistics=batch)"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="of the random augmentations")


class TTC(AffineMethod):
    """Predict with two views averaged; adapt on the selected images, every few batches."""

    name = "ttc"
    Settings = TTCSettings
    _settings: TTCSettings

    def _compose(self) -> Sequence[Part]:
        self._learned_batches = LearnedBatches()
        return (*super()._compose(), self._learned_batches)

    def predict(self, images: Tensor, *, learn: bool = True) -> Prediction:
        s = self._settings
        look = self._statistics.look(len(images))
        similarity = None
        with torch.set_grad_enabled(learn):
            view, second = self._views(images, look)
            logits = view.logits
            if s.rla:
                assert second is not None
                logits = _average(view.logits, second.logits, s.average)
            entropies = entropy(logits)
            if s.spc and learn:
                assert second is not None
                similarity = self._similarity(view, second)
        selected = select_confident(entropies.detach()) if s.ss else None
        return self._answered(logits, entropies, selected, look, learn=learn, similarity=similarity)

    def _views(self, images: Tensor, look: Look) -> tuple[Output, Output | None]:
        """Run the image, and the second view if a part of the method wants it."""
        s, model, affine = self._settings, self.model, self._learner.affine
        unit = model.to_unit(images)
        if not (s.rla or s.spc):
            return model.run(model.normalize(unit), affine=affine, look=look), None
        # Each batch draws anew, yet predicting twice draws the same.
        other = augment(unit, s.augmentation, seed=s.seed + self._learned_batches.count)
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

    def _loss(self, prediction: Prediction) -> Loss:
        """The loss of Algorithm 1, and its two terms."""
        s, pending, selected = self._settings, prediction.pending, prediction.selected
        assert pending.entropy is not None
        per_image = pending.entropy
        similarity, weights = None, None
        if pending.similarity is not None:
            per_image = per_image + pending.similarity
            similarity = pending.similarity[selected].mean()
        if s.mean_over == "selected":
            loss = per_image[selected].mean()
        else:
            loss = per_image[selected].sum() / len(prediction)
            weights = selected / len(prediction)
        if s.accumulate_mean:
            batches = self._batches_per_step(len(prediction))
            loss = loss / batches
            each = selected / selected.sum().clamp_min(1) if weights is None else weights
            weights = each / batches
        mean = pending.entropy[selected].mean()
        return Loss(loss, mean, selected.sum(), similarity, weights)

    def _batches_per_step(self, images: int) -> int:
        """Q for batches of this size: round(samples_per_step / N), halves down, at least 1."""
        if not self._settings.ga:
            return 1
        return max(1, -(-(2 * self._settings.samples_per_step - images) // (2 * images)))

    def _step_is_due(self, images: int) -> bool:
        """Whether the batch at hand completes an accumulation (METHOD §2.3 and §2.5)."""
        s = self._settings
        if not s.ga or (s.counter_start == 0 and self._learned_batches.count == 0):
            return True
        return self._learner.pending_images + images + images / 2 >= s.samples_per_step

    def end(self) -> bool:
        """The stream is over: step on what waits, if `flush_at_end` says so; return whether."""
        due = self._settings.flush_at_end and self._learner.pending_batches > 0
        return due and self._learner.end()


def _average(logits: Tensor, others: Tensor, of: str) -> Tensor:
    """RLA (Eq. 7): the mean of the two views' logits, or the log of their mean probabilities."""
    if of == "logits":
        return (logits + others) / 2
    mean = (logits.softmax(dim=1) + others.softmax(dim=1)) / 2
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()  # log 0 would make nan of 0·log 0
