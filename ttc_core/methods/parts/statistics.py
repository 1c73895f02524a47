"""Where one stream's BatchNorm layers take their statistics from.

A statistics part gives each pass a look (`ttc_core.normalization`), tells what the pass would add
to it, its *share*, and commits the share once the batch is learned from. A further one is a class
with these verbs and a line in `STATISTICS`; its look may keep what it likes of each call, moments
of single images among it, and `commit` is handed the prediction with classes, entropies and
probabilities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ttc_core.flat import NamedTensors
from ttc_core.methods.contract import Prediction, Share, State
from ttc_core.model import SourceModel
from ttc_core.normalization import BatchLook, Call, Look, source_look


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
        self.reset()

    def reset(self) -> None:
        self.images_seen = 0
        # (2, channels of all layers); never written in place, so the source's need no copy.
        self._moments = self._model.source_moments

    @property
    def moments(self) -> dict[str, Tensor]:
        """E[x] and E[x²] of each layer, (2, C)."""
        return self._model.moments_layout.views(self._moments)

    def look(self, images: int) -> "MovingLook":
        return MovingLook(self.moments, self._weight(images), images)

    @classmethod
    def look_together(
        cls, streams: Sequence["MovingStatistics"], images: Sequence[int]
    ) -> "MovingLook":
        """A look for a pass whose rows belong to several streams, so many images of each."""
        moments = torch.stack([stream._moments for stream in streams])
        weights = [s._weight(count) for s, count in zip(streams, images, strict=True)]
        weight = torch.tensor(weights, dtype=moments.dtype, device=moments.device)
        layout = streams[0]._model.moments_layout
        return MovingLook(layout.views(moments), weight[:, None, None], *images)

    def repeated(self, look: Look) -> Look:
        """Normalise as the finished pass did; nothing more moves."""
        assert isinstance(look, MovingLook)
        return look.again

    def share(self, look: Look, stream: int | None = None) -> MovingShare:
        """What the batch of a finished pass adds; `stream` says whose in a pass of several."""
        assert isinstance(look, MovingLook)
        return look.share(stream)

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        share = prediction.pending.share
        assert isinstance(share, MovingShare)
        if share.moments:  # there are none in a network without BatchNorm
            # A layer that the pass left out (an auxiliary head, say) keeps its moments.
            batch = {**self.moments, **share.moments}
            flat = torch.cat([batch[name] for name in self._model.moments_layout.shapes], dim=1)
            self._moments = torch.lerp(self._moments, flat, self._weight(share.images))
        self.images_seen += share.images

    def _weight(self, images: int) -> float:
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


class MovingLook:
    """Normalise with moving statistics, moved by the batch at hand.

    Args:
        moments: by layer, (2, C), or (S, 2, C) for rows of S streams.
        weight: of the batch's own moments; (S, 1, 1) likewise.
        images: of the batch, of each stream.
    """

    def __init__(self, moments: Mapping[str, Tensor], weight: float | Tensor, *images: int) -> None:
        self._moments, self._weight, self._images = moments, weight, images
        # By layer: the mean of its calls' moments, and the moments that each call used.
        self._batch: dict[str, Tensor] = {}
        self._used: dict[str, list[Tensor]] = {}

    def __call__(self, call: Call) -> Tensor:
        with torch.no_grad():
            batch = call.moments().to(self._moments[call.layer].dtype)
            if call.number > 0:
                batch = torch.lerp(self._batch[call.layer], batch, 1 / (call.number + 1))
            self._batch[call.layer] = batch
            used = torch.lerp(self._moments[call.layer], batch, self._weight)
        self._used.setdefault(call.layer, []).append(used)
        return _normalized(call, used)

    def again(self, call: Call) -> Tensor:
        """A look of its own: the mean and variance that the finished pass used, call by call."""
        used = self._used.get(call.layer)
        if used is None:  # a pass over altered images may take other turns
            return _normalized(call, self._moments[call.layer])
        return _normalized(call, used[min(call.number, len(used) - 1)])

    def share(self, stream: int | None = None) -> MovingShare:
        """What the batch adds to a stream's; complete after the forward pass."""
        if stream is None:
            return MovingShare(self._images[0], self._batch)
        own = {name: moments[stream] for name, moments in self._batch.items()}
        return MovingShare(self._images[stream], own)


def _normalized(call: Call, moments: Tensor) -> Tensor:
    """Normalise with moments (2, C), or each stream's (S, 2, C)."""
    with torch.no_grad():
        mean, square = moments.unbind(-2)
        # Rounding may leave a constant channel's variance a little below 0.
        variance = (square - mean.square()).clamp_(min=0)
        if call.rows is not None and moments.ndim == 3:
            mean, variance = mean[call.rows.index], variance[call.rows.index]
    return call.normalized(mean, variance)


def _moving(model: SourceModel, settings: Any) -> Statistics:
    moving = settings.moving
    return MovingStatistics(model, warm_start=moving.warm_start, floor=moving.floor)


# How `statistics=NAME` is made, at the source.
STATISTICS: dict[str, Callable[[SourceModel, Any], Statistics]] = {
    "batch": lambda _, settings: FixedStatistics(BatchLook(settings.prior_images)),
    "source": lambda _, settings: FixedStatistics(source_look),
    "moving": _moving,
}
