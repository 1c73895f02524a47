"""BatchNorm statistics for a camera's stream: early layers follow fast, late ones with care.

What light, weather and lens do shows in the early layers, whatever the class: their moments follow
within tens of images. Late layers see classes: theirs follow slowly, with every class counting
alike, and only once the answers have been diverse (`diversity`). All are a blend of the source's
and the stream's. METHOD §1.9.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttc_core.flat import NamedTensors
from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import bounded
from ttc_core.methods.parts.diversity import Classes
from ttc_core.model import SourceModel
from ttc_core.normalization import Call

# Images that the source's statistics are worth at the start.
WARM_START = 16
# The part of the layers, in the order of the network, that is early.
EARLY = 0.5


@dataclass(frozen=True)
class StreamShare:
    """What one batch adds.

    Attributes:
        images: how many it has.
        moments: of each early layer over the batch, (2, C).
        image_moments: of each late layer in each image, (N, 2, C).
    """

    images: int
    moments: Mapping[str, Tensor]
    image_moments: Mapping[str, Tensor]

    def tensors(self) -> Sequence[Tensor]:
        return [*self.moments.values(), *self.image_moments.values()]


class StreamStatistics:
    """Moments E[x] and E[x²] of each BatchNorm layer, (2, C), that follow one stream.

    Args:
        blend: of what a layer is normalised with, the stream's part; the rest is the source's.
        early_horizon, late_horizon: images over which the moments of early and late layers run.
    """

    def __init__(
        self, model: SourceModel, *, blend: float, early_horizon: int, late_horizon: int
    ) -> None:
        self._model, self._blend = model, blend
        self._horizons = {False: early_horizon, True: late_horizon}
        names = list(model.moments_layout.shapes)
        self._late = {name: place >= EARLY * len(names) for place, name in enumerate(names)}
        self.reset()

    def reset(self) -> None:
        # Never written in place, so the source's need no copy.
        self._moments = self._model.source_moments
        # Images seen, by whether the layer is late; there each counts by its class.
        self._seen: dict[bool, float] = {False: 0, True: 0.0}

    def look(self, images: int, classes: Classes, opening: float) -> "StreamLook":
        """A look for a pass over `images` images, of which each may come in several views."""
        views = self._model.moments_layout.views
        weights = {
            False: self._weight(False, images),
            True: self._weight(True, images * classes.expected_weight),
        }
        return StreamLook(
            images,
            views(self._model.source_moments),
            views(self._moments),
            {name: weights[late] for name, late in self._late.items()},
            {name: self._blend * (opening if late else 1) for name, late in self._late.items()},
            self._late,
        )

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        share = prediction.pending.share
        assert isinstance(share, StreamShare)
        counted = torch.from_numpy(prediction.pending.after["classes"].weights)
        total = float(counted.sum())
        each = (counted / total).to(self._moments)
        weights = {False: self._weight(False, share.images), True: self._weight(True, total)}
        moved = self._model.moments_layout.views(self._moments)
        for name, moments in share.moments.items():
            moved[name] = torch.lerp(moved[name], moments.to(moved[name]), weights[False])
        for name, moments in share.image_moments.items():
            mean = torch.tensordot(each, moments.to(moved[name]), dims=1)
            moved[name] = torch.lerp(moved[name], mean, weights[True])
        if moved:
            flat = [moved[name] for name in self._model.moments_layout.shapes]
            self._moments = torch.cat(flat, dim=1)
        self._seen = {False: self._seen[False] + share.images, True: self._seen[True] + total}

    def _weight(self, late: bool, images: float) -> float:
        """What so many images weigh beside all before."""
        rate = max(1 / (WARM_START + self._seen[late]), 1 / self._horizons[late])
        return float(1 - (1 - rate) ** images)

    def state(self) -> State:
        return {
            "moments": NamedTensors(
                self._model.moments_in_state,
                self._moments.flatten().clone(),
                images_seen=self._seen[False],
                late_images=self._seen[True],
            )
        }

    def restore(self, state: State) -> None:
        moments = state["moments"]
        flat = self._model.moments_in_state.flattened(moments)
        self._moments = flat.to(self._moments).view(2, -1)
        self._seen = {
            False: int(bounded(moments["images_seen"])),
            True: bounded(moments["late_images"]),
        }


class StreamLook:
    """Normalise with blended statistics, moved by the batch at hand.

    Args:
        source, stream: moments by layer, (2, C).
        weights: by layer, of the batch's own moments beside the stream's.
        blends: by layer, of the stream's moments beside the source's.
        late: by layer, whether it is.
    """

    def __init__(
        self,
        images: int,
        source: Mapping[str, Tensor],
        stream: Mapping[str, Tensor],
        weights: Mapping[str, float],
        blends: Mapping[str, float],
        late: Mapping[str, bool],
    ) -> None:
        self._images, self._source, self._stream = images, source, stream
        self._weights, self._blends, self._late = weights, blends, late
        # By layer, the mean over its calls: over the batch, or in each image of it.
        self._found: dict[str, Tensor] = {}

    def __call__(self, call: Call) -> Tensor:
        name = call.layer
        with torch.no_grad():
            late = self._late[name]
            found = self._by_image(call.image_moments()) if late else call.moments()
            if call.number > 0:
                found = torch.lerp(self._found[name], found, 1 / (call.number + 1))
            self._found[name] = found
            stream = self._stream[name]
            batch = (found.mean(0) if late else found).to(stream)
            moved = torch.lerp(stream, batch, self._weights[name])
            mean, square = torch.lerp(self._source[name], moved, self._blends[name])
            # Rounding may leave a constant channel's variance a little below 0.
            variance = (square - mean.square()).clamp_(min=0)
        return call.normalized(mean, variance)

    def share(self) -> StreamShare:
        """What the batch adds; complete after the forward pass."""
        early = {name: found for name, found in self._found.items() if not self._late[name]}
        late = {name: found for name, found in self._found.items() if self._late[name]}
        return StreamShare(self._images, early, late)

    def _by_image(self, found: Tensor) -> Tensor:
        """(N, 2, C) of a layer's rows (R, 2, C)."""
        if len(found) % self._images:  # it sees other things than images
            return found.mean(0).expand(self._images, *found.shape[1:])
        # The views of an image, which stand behind one another, are one look at it.
        return found.view(-1, self._images, *found.shape[1:]).mean(0)
