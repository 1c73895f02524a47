"""Light, weather and lens that change, and come back: what was followed under each is kept.

How an image looks shows in the moments of the first BatchNorm layer, whatever its class. Where the
latest images look other than the stream did, its statistics follow them as fast as at the start;
where they look as under a condition before, they do so from what was followed then. What was found
out of the answers is of the condition that was left: a network in fog has other favourites than in
clear weather, which look like a run of one class where its habits are held against those of before.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import MOST, Numbers, bounded
from ttc_core.methods.parts.diversity import Diversity
from ttc_core.methods.parts.prior import TemporalPrior
from ttc_core.methods.parts.shadow import Shadow
from ttc_core.methods.parts.stream_statistics import StreamShare, StreamStatistics
from ttc_core.model import SourceModel
from ttc_core.packing import pack, packed_none, unpack

# Images that tell how it looks at present, and those that a condition's look runs over.
PRESENT, HORIZON = 8, 64
# Before so many images of a condition nothing is called a change.
LEAST_IMAGES = 32
# How far a look is from a condition's, in standard deviations of its images: the latest images are
# of another one if they are further than CHANGED, and of one before if nearer than SAME.
CHANGED, SAME = 1.0, 0.8
# How many conditions are remembered beside the present one; the one left first is forgotten.
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
    """A condition, and the moments of all layers that were followed under it, packed.

    Attributes:
        codes, scales: (2, C) and (B,), as `packing.pack` has them against the source's.
    """

    condition: Condition
    codes: Tensor
    scales: Tensor


class Conditions:
    """Notices that conditions change, and recognises those that come back.

    Only while the answers are diverse: a run of one class looks other than all classes do. Those
    before a batch tell, since its own may be of few classes because of a change. The look is that
    of the layer which the network has first; where it is never called, nothing is noticed.
    A part of its method after `shadow`, `diversity` and `prior`, and before `statistics`; they all
    begin anew with a change.
    """

    def __init__(
        self,
        model: SourceModel,
        statistics: StreamStatistics,
        shadow: Shadow,
        diversity: Diversity,
        prior: TemporalPrior,
    ) -> None:
        self._model, self._statistics = model, statistics
        self._shadow, self._diversity, self._prior = shadow, diversity, prior
        self.reset()

    def reset(self) -> None:
        # None: too few images have come since the change.
        self._condition: Condition | None = None
        sizes = [2 * channels for (channels,) in self._model.moments_layout.shapes.values()]
        # Never written in place, so that it takes no memory.
        self._present, self._present_images = np.broadcast_to(0.0, (sizes or [0])[0]), 0
        self._remembered: tuple[Remembered, ...] = ()

    @property
    def known(self) -> int:
        """How many conditions are known, the present one too."""
        return len(self._remembered) + 1

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        share, diverse = prediction.pending.share, prediction.pending.after["diverse"]
        assert isinstance(share, StreamShare)
        looks = looks_of(self._model, share)
        if looks is None:
            return
        left = False
        for look in looks:
            self._present_images += 1
            weight = 1 / min(self._present_images, PRESENT)
            self._present = self._present + weight * (look - self._present)
            if self._present_images < PRESENT:
                continue
            if self._condition is None:
                if diverse or not self._remembered:
                    self._condition = self._recognised()
                else:
                    self._present_images = 0  # wait for as many anew
            elif (
                # What began within this batch has no moments yet to be remembered by.
                not left
                and diverse
                and self._condition.images >= LEAST_IMAGES
                and self._condition.distance(self._present) > CHANGED
            ):
                self._leave(self._condition)
                left = True
            else:
                self._condition = self._condition.after(look)

    def _leave(self, condition: Condition) -> None:
        moments = self._statistics.followed.moments
        remembered = Remembered(condition, *pack(moments, self._model.source_moments))
        self._remembered = (*self._remembered, remembered)
        self._condition, self._present_images = None, 0
        self._statistics.restart(moments)
        self._shadow.reset()
        self._diversity.restart()
        self._prior.restart()

    def _recognised(self) -> Condition:
        """The condition of the latest images: one from before, or a new one."""
        if not self._remembered:
            variance = np.full_like(self._present, START_VARIANCE)
            return Condition(self._present, variance, PRESENT)
        nearest = min(self._remembered, key=lambda each: each.condition.distance(self._present))
        if nearest.condition.distance(self._present) > SAME:
            variance = self._remembered[-1].condition.variance
            self._remembered = self._remembered[-REMEMBERED:]
            return Condition(self._present, variance, PRESENT)
        self._remembered = tuple(each for each in self._remembered if each is not nearest)
        source = self._model.source_moments
        self._statistics.restart(unpack(nearest.codes, nearest.scales, source))
        return nearest.condition

    def state(self) -> State:
        conditions = [each.condition for each in self._remembered]
        if self._condition is not None:
            conditions.append(self._condition)
        codes, scales = (
            torch.stack([getattr(each, name) for each in self._remembered])
            if self._remembered
            else none
            for name, none in zip(
                ("codes", "scales"), packed_none(self._model.source_moments), strict=True
            )
        )
        return {
            "conditions": {
                "means": _stacked([each.mean for each in conditions], self._present),
                "variances": _stacked([each.variance for each in conditions], self._present),
                "images": torch.tensor([each.images for each in conditions], dtype=torch.int64),
                "codes": codes,
                "scales": scales,
                # As saved states have them.
                "latest": torch.from_numpy(self._present.copy()),
                "latest_images": self._present_images,
            }
        }

    def restore(self, state: State) -> None:
        given, like = state["conditions"], self._model.source_moments
        blocks = packed_none(like)[1].shape[1:]
        if not isinstance(given, Mapping):
            raise ValueError("its conditions are none")
        tensors = means, variances, images, codes, scales, latest = tuple(
            given[name] for name in ("means", "variances", "images", "codes", "scales", "latest")
        )
        if not all(isinstance(each, Tensor) and each.ndim for each in tensors):
            raise ValueError("its conditions are none")
        count, looks = len(codes), self._present.shape
        known = len(means) - count
        sound = (
            known in (0, 1)
            and count <= REMEMBERED + (known == 0)
            and codes.dtype == torch.int8
            and codes.shape[1:] == like.shape
            and scales.shape == (count, *blocks)
            and means.shape == variances.shape == (count + known, *looks)
            and images.shape == (count + known,)
            and latest.shape == looks
            and all(bool((each.abs() <= MOST).all()) for each in tensors)
            and all(bool((each >= 0).all()) for each in (variances, images))
        )
        if not sound:
            raise ValueError("its conditions are none of this network's")
        conditions = [
            Condition(mean, variance, number)
            for mean, variance, number in zip(
                *(each.double().cpu().numpy() for each in (means, variances)),
                map(int, images.tolist()),
                strict=True,
            )
        ]
        self._remembered = tuple(
            Remembered(condition, code.to(like.device), scale.to(like.device).float())
            for condition, code, scale in zip(conditions, codes, scales, strict=False)
        )
        self._condition = conditions[-1] if known else None
        self._present = latest.double().cpu().numpy().copy()
        self._present_images = int(bounded(given["latest_images"]))


def looks_of(model: SourceModel, share: StreamShare) -> Numbers | None:
    """(N, D) how images look: mean and deviation of their first layer's channels, in units of the
    source's deviations; None where that layer is never called."""
    moments = share.image_moments.get(next(iter(model.moments_layout.shapes), ""))
    if moments is None:
        return None
    usual, deviation = _deviations(model.source_moments[:, : moments.shape[-1]])
    means, deviations = _deviations(moments.transpose(0, 1))
    looks: Numbers = np.concatenate(
        [(means - usual) / deviation, np.log(deviations / deviation + 0.05)], axis=1
    )
    return looks


def _deviations(moments: Tensor) -> tuple[Numbers, Numbers]:
    """Mean and deviation, (…, C) each, of moments (2, …, C)."""
    mean, square = moments.double().cpu().numpy()
    return mean, np.sqrt(np.maximum(square - mean**2, 1e-8))


def _stacked(rows: list[Numbers], like: Numbers) -> Tensor:
    return torch.from_numpy(np.stack(rows) if rows else np.zeros((0, *like.shape)))
