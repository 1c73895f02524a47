"""A method that learns only while its stream differs from what it last learned.

It learns from a number of images at the start, and on to its next step; and again once the latest
images look otherwise, or are answered less surely, than those did. In between it looks only: no
graph is kept and no gradient taken; statistics, prior and all else that follows a stream follow on.
The look is of the pixels, so that it is the same for every method and network. All is counted in
images.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods.contract import (
    ADAPTING,
    ON_SHIFT,
    SETTLED,
    Adaptation,
    Method,
    Pending,
    Prediction,
    State,
)
from ttc_core.methods.parts import MOST, Numbers, bounded

# Images learned from before a stream is settled, at least: with the step that takes them in. One
# that takes no step is settled all the same, after so many times as many.
WINDOW, MOST_WINDOWS = 100, 10
# Images that the numbers since then run over; how far their look may be from what was learned, in
# standard deviations of single images, in the root mean square; their entropy, which is one number
# and so by chance further away, by how much more.
SINCE_SETTLED, CHANGED, UNSURE = 64, 0.35, 2.0
# Differences between neighbours are taken of the picture, of its half, and of its quarter.
SCALES = 3
# A picture's numbers: the level of each channel, contrast, differences; and the answer's entropy.
LOOK = 3 + 1 + SCALES
NUMBERS = LOOK + 1
# Added: some numbers hardly vary. And to what logarithms are taken of, in [0, 1].
LEAST_VARIANCE, LEAST = 0.01, 0.01


@dataclass(frozen=True)
class Learned:
    """What a stream was like while its method last learned, and is like now; never written in
    place.

    Attributes:
        mean, variance: (NUMBERS,) over the images that were learned from.
        images: how many those were.
        since_settled: (NUMBERS,) of the latest images, since the method is settled.
        settled: whether it learns no more, for now.
    """

    mean: Numbers = field(default_factory=lambda: np.zeros(NUMBERS))
    variance: Numbers = field(default_factory=lambda: np.zeros(NUMBERS))
    images: int = 0
    since_settled: Numbers = field(default_factory=lambda: np.zeros(NUMBERS))
    settled: bool = False

    @property
    def distance(self) -> float:
        """How far the latest images are from those learned from; 0 while it learns."""
        if not self.settled:
            return 0.0
        away = (self.since_settled - self.mean) / np.sqrt(self.variance + LEAST_VARIANCE)
        look, unsure = float(np.sqrt(np.square(away[:LOOK]).mean())), float(away[LOOK])
        return max(look, unsure / UNSURE)

    def after(self, seen: Numbers, *, learned: bool, pending: bool = False) -> "Learned":
        """With a batch, (N, NUMBERS), that was learned from or not; what is `pending` no step has
        taken in yet."""
        if self.settled:
            now = self.since_settled
            for each in seen:
                now = now + (each - now) / SINCE_SETTLED
                moved = replace(self, since_settled=now)
                if moved.distance > CHANGED:
                    return Learned()  # the next batch is the first to be learned from
            return replace(self, since_settled=now)
        if not learned:
            return self
        count, total = len(seen), self.images + len(seen)
        mean = self.mean + (seen.mean(axis=0) - self.mean) * count / total
        # Of both together: each one's own, and how far their means are apart.
        apart = np.square(seen.mean(axis=0) - self.mean) * self.images * count / total
        variance = (self.variance * self.images + seen.var(axis=0) * count + apart) / total
        settled = total >= WINDOW * (MOST_WINDOWS if pending else 1)
        return Learned(mean, variance, total, mean, settled)


@dataclass(frozen=True)
class _Seen(Pending):
    """The inner method's prediction, what was seen of its images, (N, NUMBERS), and whether the
    method was settled then."""

    inner: Prediction | None = None
    numbers: Numbers = field(default_factory=lambda: np.zeros((0, NUMBERS)))
    settled: bool = False


class OnShift(Wrapper):
    """Have a method learn only while the stream differs from what it last learned.

    What it does not learn from, since it is settled, is skipped as "settled".
    """

    def __init__(self, inner: Method) -> None:
        super().__init__(inner)
        self._learned = Learned()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**self.inner.settings, ON_SHIFT: True}

    @property
    def details(self) -> Mapping[str, float]:
        """The method's, and how far the stream is from what was learned: `CHANGED` and it learns
        anew; 0 while it does."""
        return {**self.inner.details, "shift": self._learned.distance}

    @property
    def mode(self) -> str:
        return SETTLED if self._learned.settled else ADAPTING

    def predict(self, images: Tensor, *, learn: bool = True, **asked: Any) -> Prediction:
        settled = self._learned.settled
        said = self.inner.predict(images, learn=learn and not settled, **asked)
        entropies = said.entropy.detach()[:, None].double().cpu() / math.log(self.model.classes)
        looks = look_of(self.model.to_unit(images)).double().cpu()
        pending = _Seen(
            share=said.pending.share,
            inner=said,
            numbers=torch.cat((looks, entropies), dim=1).numpy(),
            settled=settled,
        )
        return replace(
            said,
            selected=torch.zeros_like(said.selected) if settled else said.selected,
            modes=(self.mode,) * len(said),
            pending=pending,
        )

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        pending = prediction.pending
        if not isinstance(pending, _Seen) or pending.inner is None:
            raise ValueError("This prediction is another method's; adapt to what was predicted.")
        inner = pending.inner
        if not pending.settled and prediction.selected is not inner.selected:
            inner = replace(inner, selected=prediction.selected)  # somebody chose others
        outcome = self.inner.adapt(inner, learn=learn and not pending.settled)
        if outcome.skipped == "non_finite":
            return outcome
        if pending.settled == self._learned.settled:  # else it was answered before that turned
            self._learned = self._learned.after(
                pending.numbers,
                learned=outcome.skipped is None,
                pending=self.inner.pending_batches > 0,
            )
        if learn and pending.settled and outcome.skipped == "shed":
            return replace(outcome, skipped="settled")
        return outcome

    def reset(self) -> None:
        self._learned = Learned()
        self.inner.reset()

    def state(self) -> State:
        learned = self._learned
        # As saved states have them.
        numbers = {
            "mean": learned.mean,
            "variance": learned.variance,
            "latest": learned.since_settled,
        }
        tensors = {name: torch.from_numpy(each.copy()) for name, each in numbers.items()}
        own = {**tensors, "images": learned.images, "settled": int(learned.settled)}
        return {**self.inner.state(), ON_SHIFT: own}

    def restore(self, state: State) -> None:
        """Go on from a state; one without anything of this begins to learn.

        Raises:
            KeyError, ValueError: what it says of the stream is none; or what the method raises.
        """
        learned = _restored(state[ON_SHIFT]) if ON_SHIFT in state else Learned()
        self.inner.restore({name: state[name] for name in state if name != ON_SHIFT})
        self._learned = learned


def look_of(images: Tensor) -> Tensor:
    """(N, LOOK) how images (N, 3, H, W) in [0, 1] look, whatever is in them: the level of each
    channel, and the logarithms of contrast and of how far neighbours differ, at each scale."""
    levels, grey = images.mean(dim=(2, 3)), images.mean(dim=1, keepdim=True)
    found = [grey.flatten(1).std(dim=1, correction=0)]
    for scale in range(SCALES):
        if scale:
            # Of a picture of one pixel there is no half.
            grey = functional.avg_pool2d(grey, 2, ceil_mode=True)
        across, down = grey.diff(dim=3).abs(), grey.diff(dim=2).abs()
        both = torch.cat((across.flatten(1), down.flatten(1)), dim=1)
        found.append(both.sum(dim=1) / max(1, both.shape[1]))
    return torch.cat((levels, (torch.stack(found, dim=1) + LEAST).log()), dim=1)


def _restored(given: Any) -> Learned:
    if not isinstance(given, Mapping):
        raise ValueError("what it last learned is none")
    numbers: list[Numbers] = []
    for name in ("mean", "variance", "latest"):
        value = given[name]
        sound = isinstance(value, Tensor) and value.shape == (NUMBERS,)
        if not (sound and bool((value.double().abs() <= MOST).all())):
            raise ValueError("what it last learned is none")
        numbers.append(value.double().cpu().numpy().copy())
    mean, variance, since_settled = numbers
    if (variance < 0).any():
        raise ValueError("what it last learned is none")
    settled = bool(bounded(given["settled"], most=1))
    return Learned(mean, variance, int(bounded(given["images"])), since_settled, settled)
