"""Where one stream's BatchNorm layers take their statistics from.

A statistics part gives each pass a look (`ttc_core.normalization`), tells what the pass would add
to it, its *share*, and commits the share once the batch is learned from. A further one is a class
with these verbs and a line in `STATISTICS`; its look may keep what it likes of each call, moments
of single images among it, and `commit` is handed the prediction with classes, entropies and
probabilities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ttc_core.envelope.ledger import Ledger
from ttc_core.envelope.limits import Limits
from ttc_core.flat import Layout, NamedTensors
from ttc_core.methods.contract import Prediction, Share, State
from ttc_core.model import SourceModel
from ttc_core.normalization import BatchLook, Call, Look, OwnLook, Parted, source_look


class Statistics(Protocol):
    """Where one stream's BatchNorm layers take their statistics from.

    Attributes:
        moves: whether they follow the stream. Then both views of an image go through one pass.
    """

    moves: bool

    def look(self, images: int) -> Look:
        """A look for a pass over `images` images (each may come in several views)."""

    def repeated(self, look: Look) -> Look:
        """A look for further passes over altered copies of a finished pass's images."""

    def share(self, look: Look) -> Share | None:
        """What the batch of a finished pass adds; None where nothing moves."""

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        """Let the share of a batch that was answered move the statistics."""

    def reset(self) -> None:
        """Back to the source's statistics."""

    def state(self) -> State:
        """What has moved: the section "moments"."""

    def restore(self, state: State) -> None:
        """Take up what `state` gave."""


class FixedStatistics:
    """The source's or each batch's own statistics: nothing follows the stream."""

    moves = False

    def __init__(self, look: Look) -> None:
        self._look = look

    def look(self, images: int) -> Look:
        return self._look

    def repeated(self, look: Look) -> Look:
        return look

    def share(self, look: Look) -> None:
        return None

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        """Nothing moves."""

    def reset(self) -> None:
        """Nothing has moved."""

    def state(self) -> State:
        return {"moments": {}}

    def restore(self, state: State) -> None:
        """Nothing has moved."""


@dataclass(frozen=True)
class MovingShare:
    """What one batch adds to moving statistics.

    Attributes:
        images: how many it has.
        moments: its own by layer, (2, C) each. A layer that the pass left out is missing.
    """

    images: int
    moments: Mapping[str, Tensor]

    def tensors(self) -> Sequence[Tensor]:
        return list(self.moments.values())


class MovingStatistics:
    """Moments E[x] and E[x²] of each BatchNorm layer that follow a stream image by image.

    They start from the source's. A batch of n images moves them by
    m ← m + (1 − (1 − a)ⁿ)(m_batch − m), a = max(1 / (warm_start + images seen), floor).
    A pass normalises with the moments *after* the move, the current images included, and takes
    them for constants in the gradient; `commit` makes the move last. METHOD §1.8.

    A layer that a pass calls several times moves by the mean of its calls' moments; each call is
    normalised with the mean of those so far. Moments are float32 at least, whatever the network's
    precision.
    """

    moves = True

    def __init__(self, model: SourceModel, *, warm_start: int, floor: float) -> None:
        self._model = model
        self._warm_start, self._floor = warm_start, floor
        self._within: tuple[Limits, Ledger] | None = None
        self.reset()

    def keep_within(self, limits: Limits, ledger: Ledger) -> None:
        """Have no image weigh more than the limits allow; where one should, that is noted."""
        self._within = limits, ledger

    def reset(self) -> None:
        self.images_seen = 0
        # (2, channels of all layers); never written in place, so the source's need no copy.
        self._moments = self._model.source_moments

    @property
    def moments(self) -> dict[str, Tensor]:
        """E[x] and E[x²] of each layer, (2, C)."""
        return self._model.moments_layout.views(self._moments)

    def look(self, images: int) -> "MovingLook":
        return MovingLook(self._model.moments_layout, self._moments, self._weight(images), images)

    def repeated(self, look: Look) -> Look:
        """Normalise as the finished pass did; nothing more moves."""
        assert isinstance(look, MovingLook)
        return look.again

    def share(self, look: Look) -> MovingShare:
        assert isinstance(look, MovingLook)
        return look.share()

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        share = prediction.pending.share
        assert isinstance(share, MovingShare)
        if share.moments:  # there are none in a network without BatchNorm
            # A layer that the pass left out (an auxiliary head, say) keeps its moments.
            batch = {**self.moments, **share.moments}
            flat = torch.cat([batch[name] for name in self._model.moments_layout.shapes], dim=1)
            weight, wanted = self._weight(share.images), self._wanted_weight(share.images)
            if weight < wanted and self._within is not None:
                self._within[1].cut("image_in_statistics")
            self._moments = torch.lerp(self._moments, flat, weight)
        self.images_seen += share.images

    def _weight(self, images: int) -> float:
        wanted = self._wanted_weight(images)
        return wanted if self._within is None else min(wanted, self._within[0].weight_of(images))

    def _wanted_weight(self, images: int) -> float:
        rate = max(1 / (self._warm_start + self.images_seen), self._floor)
        return float(1 - (1 - rate) ** images)

    def state(self) -> State:
        """Of each layer `moment1.NAME` and `moment2.NAME`, (C,) each, and the images seen."""
        flat = self._moments.flatten().clone()
        layout = self._model.moments_in_state
        return {"moments": NamedTensors(layout, flat, images_seen=self.images_seen)}

    def restore(self, state: State) -> None:
        moments = state["moments"]
        flat = self._model.moments_in_state.flattened(moments)
        self._moments = flat.to(self._moments).view(2, -1)
        self.images_seen = int(moments["images_seen"])


class MovingLook(OwnLook):
    """Normalise with moving statistics, moved by the batch at hand.

    Args:
        moments: (2, P) of all layers, as the layout has them.
        weight: of the batch's own moments.
        images: of the batch.
    """

    def __init__(self, layout: Layout, moments: Tensor, weight: float, images: int) -> None:
        self.images = images
        self._layout, self._flat, self._weight = layout, moments, weight
        self._moments = layout.views(moments)
        self.moves = dict.fromkeys(self._moments, weight)
        # By layer, of each call: the mean of its moments and of those of the calls before.
        self._batch: dict[str, list[Tensor]] = {}

    @cached_property
    def kept(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        return NamedTensors(self._layout, (1 - self._weight) * self._flat)

    def __call__(self, call: Call) -> Tensor:
        with torch.no_grad():
            batch = call.moments().to(self._flat.dtype)
            before = self._batch[call.layer] if call.number else []
            if before:
                batch = torch.lerp(before[-1], batch, 1 / (call.number + 1))
            self._batch[call.layer] = [*before, batch]
        return call.blended(self._used(call.layer, -1))

    def saw(self, found: Tensor, parted: Parted) -> None:
        self._batch = parted(found.mean(0).to(self._flat.dtype))

    def again(self, call: Call) -> Tensor:
        """A look of its own: the mean and variance that the finished pass used, call by call."""
        calls = self._batch.get(call.layer)
        if calls is None:  # a pass over altered images may take other turns
            return call.blended(self._moments[call.layer])
        return call.blended(self._used(call.layer, min(call.number, len(calls) - 1)))

    def _used(self, layer: str, number: int) -> Tensor:
        """(2, C), what a call was normalised with."""
        return torch.lerp(self._moments[layer], self._batch[layer][number], self._weight)

    def share(self) -> MovingShare:
        """What the batch adds; complete after the forward pass."""
        return MovingShare(self.images, {name: calls[-1] for name, calls in self._batch.items()})


def _moving(model: SourceModel, settings: Any) -> Statistics:
    moving = settings.moving
    return MovingStatistics(model, warm_start=moving.warm_start, floor=moving.floor)


# How `statistics=NAME` is made, at the source.
STATISTICS: dict[str, Callable[[SourceModel, Any], Statistics]] = {
    "batch": lambda _, settings: FixedStatistics(BatchLook(settings.prior_images)),
    "source": lambda _, settings: FixedStatistics(source_look),
    "moving": _moving,
}
