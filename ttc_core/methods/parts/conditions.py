"""Light, weather and lens that change, and come back: what was followed under each is kept.

How an image looks shows in the moments of the first BatchNorm layer, whatever its class. Where the
latest images look other than the stream did, its statistics follow them as fast as at the start;
where they look as under a condition before, they do so from what was followed then.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import Numbers, bounded
from ttc_core.methods.parts.diversity import Classes
from ttc_core.methods.parts.stream_statistics import Followed, StreamShare, StreamStatistics
from ttc_core.model import SourceModel

# Images that tell how it looks at present, and those that a condition's look runs over.
LATEST, HORIZON = 8, 64
# Before so many images of a condition nothing is called a change.
LEAST_IMAGES = 32
# How far a look is from a condition's, in standard deviations of its images: the latest images are
# of another one if they are further than CHANGED, and of one before if nearer than SAME.
CHANGED, SAME = 1.0, 0.8
# How many conditions are remembered; the one that was left first is forgotten.
REMEMBERED = 4
# At the start, of the look's numbers; and what is added, since some numbers hardly vary.
START_VARIANCE, LEAST_VARIANCE = 0.25, 0.01


@dataclass(frozen=True)
class Condition:
    """How images look under it.

    Attributes:
        mean, variance: (D,) of their looks.
        images: how many were seen.
    """

    mean: Numbers
    variance: Numbers
    images: int

    def after(self, look: Numbers) -> "Condition":
        """With one more image."""
        images, away = self.images + 1, look - self.mean
        return Condition(
            self.mean + away / min(images, HORIZON),
            self.variance + (away**2 - self.variance) / min(images, 2 * HORIZON),
            images,
        )

    def distance(self, look: Numbers) -> float:
        """Root mean square of how many standard deviations a look is away."""
        deviations = (look - self.mean) ** 2 / (self.variance + LEAST_VARIANCE)
        return float(np.sqrt(deviations.mean()))


@dataclass(frozen=True)
class Remembered:
    """A condition, and the moments of all layers that were followed under it, (2, C)."""

    condition: Condition
    moments: Tensor


class Conditions:
    """Notices that conditions change, and recognises those that come back.

    Only while the answers are diverse: a run of one class looks other than all classes do.
    A part of its method before `statistics`, which it tells of changes before they move on.
    """

    def __init__(self, model: SourceModel, statistics: StreamStatistics) -> None:
        self._statistics = statistics
        layer = next(iter(model.moments_layout.shapes), None)
        source = model.moments_layout.views(model.source_moments).get(layer or "")
        self._mean, self._deviation = np.zeros(0), np.ones(0)
        if source is not None:
            self._mean, square = source.double().cpu().numpy()
            self._deviation = np.sqrt(np.maximum(square - self._mean**2, 1e-12))
        self.reset()

    def reset(self) -> None:
        # None: too few images have come since the change.
        self._condition: Condition | None = None
        self._latest, self._latest_images = np.zeros(2 * len(self._mean)), 0
        self._remembered: tuple[Remembered, ...] = ()

    @property
    def known(self) -> int:
        """How many conditions are known, the present one too."""
        return len(self._remembered) + 1

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        share, classes = prediction.pending.share, prediction.pending.after["classes"]
        assert isinstance(share, StreamShare)
        assert isinstance(classes, Classes)
        if share.first is None:
            return
        for look in self._looks(share.first):
            self._latest_images += 1
            weight = 1 / min(self._latest_images, LATEST)
            self._latest = self._latest + weight * (look - self._latest)
            if self._latest_images < LATEST:
                continue
            if self._condition is None:
                self._condition = self._recognised()
            elif (
                classes.diverse
                and self._condition.images >= LEAST_IMAGES
                and self._condition.distance(self._latest) > CHANGED
            ):
                self._leave(self._condition)
            else:
                self._condition = self._condition.after(look)

    def _looks(self, moments: Tensor) -> Numbers:
        """(N, D) how images look, of the first layer's moments (N, 2, C), in units of the source's
        deviations."""
        mean, square = moments.double().cpu().numpy().transpose(1, 0, 2)
        deviation = np.sqrt(np.maximum(square - mean**2, 0)) / self._deviation
        looks: Numbers = np.concatenate(
            [(mean - self._mean) / self._deviation, np.log(deviation + 0.05)], axis=1
        )
        return looks

    def _leave(self, condition: Condition) -> None:
        left = Remembered(condition, self._statistics.followed.moments)
        self._remembered = (*self._remembered, left)[-REMEMBERED:]
        self._condition, self._latest_images = None, 0
        self._follow_from(left.moments)

    def _follow_from(self, moments: Tensor) -> None:
        """Follow what comes fast: it may be new, and scales and shifts have moved since."""
        self._statistics.followed = Followed(moments)

    def _recognised(self) -> Condition:
        """The condition of the latest images: one from before, or a new one."""
        if not self._remembered:
            variance = np.full_like(self._latest, START_VARIANCE)
            return Condition(self._latest, variance, LATEST)
        nearest = min(self._remembered, key=lambda each: each.condition.distance(self._latest))
        if nearest.condition.distance(self._latest) > SAME:
            variance = self._remembered[-1].condition.variance
            return Condition(self._latest, variance, LATEST)
        self._remembered = tuple(each for each in self._remembered if each is not nearest)
        self._follow_from(nearest.moments)
        return nearest.condition

    def state(self) -> State:
        conditions = [each.condition for each in self._remembered]
        if self._condition is not None:
            conditions.append(self._condition)
        moments = [each.moments for each in self._remembered]
        none = self._statistics.followed.moments.new_zeros(
            (0, *self._statistics.followed.moments.shape)
        )
        return {
            "conditions": {
                "means": _stacked([each.mean for each in conditions], self._latest),
                "variances": _stacked([each.variance for each in conditions], self._latest),
                "images": torch.tensor([each.images for each in conditions], dtype=torch.int64),
                "moments": torch.stack(moments) if moments else none,
                "latest": torch.from_numpy(self._latest.copy()),
                "latest_images": self._latest_images,
            }
        }

    def restore(self, state: State) -> None:
        given, now = state["conditions"], self._statistics.followed.moments
        tensors = means, variances, images, moments, latest = tuple(
            given[name] for name in ("means", "variances", "images", "moments", "latest")
        )
        if not all(isinstance(each, Tensor) and each.ndim for each in tensors):
            raise ValueError("its conditions are none")
        count, looks = len(moments), self._latest.shape
        known = len(means) - count
        sound = (
            count <= REMEMBERED
            and known in (0, 1)
            and moments.shape[1:] == now.shape
            and means.shape == variances.shape == (count + known, *looks)
            and images.shape == (count + known,)
            and latest.shape == looks
            and all(bool(each.isfinite().all()) for each in tensors)
            and all(bool((each >= 0).all()) for each in (variances, images))
        )
        if not sound:
            raise ValueError("its conditions are none of this network's")
        conditions = [
            Condition(mean, variance, number)
            for mean, variance, number in zip(
                means.double().numpy(), variances.double().numpy(), images.tolist(), strict=True
            )
        ]
        self._remembered = tuple(
            Remembered(condition, each.to(now))
            for condition, each in zip(conditions, moments, strict=False)
        )
        self._condition = conditions[-1] if known else None
        self._latest = latest.double().numpy().copy()
        self._latest_images = int(bounded(given["latest_images"]))


def _stacked(rows: list[Numbers], like: Numbers) -> Tensor:
    return torch.from_numpy(np.stack(rows) if rows else np.zeros((0, *like.shape)))
