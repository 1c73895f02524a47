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
        first: those of the network's first layer; None: it was not called, or there is none.
    """

    images: int
    moments: Mapping[str, Tensor]
    image_moments: Mapping[str, Tensor]
    first: Tensor | None

    def tensors(self) -> Sequence[Tensor]:
        return [*self.moments.values(), *self.image_moments.values()]


@dataclass(frozen=True)
class Followed:
    """What was made of a stream so far; never written in place.

    Attributes:
        moments: (2, C) of all layers, one behind the other.
        early_images, late_images: how many images they are worth; in late layers each counts by
            its class.
    """

    moments: Tensor
    early_images: float = 0.0
    late_images: float = 0.0


class StreamStatistics:
    """Moments E[x] and E[x²] of each BatchNorm layer, (2, C), that follow one stream.

    Args:
        blend: of what a layer is normalised with, the stream's part; the rest is the source's.
        early_horizon, late_horizon: images over which the moments of early and late layers run.

    Attributes:
        followed: what they are.
    """

    followed: Followed

    def __init__(
        self, model: SourceModel, *, blend: float, early_horizon: int, late_horizon: int
    ) -> None:
        self._model, self._blend = model, blend
        self._early_horizon, self._late_horizon = early_horizon, late_horizon
        names = list(model.moments_layout.shapes)
        self._late = {name: place >= EARLY * len(names) for place, name in enumerate(names)}
        self.reset()

    def reset(self) -> None:
        self.followed = Followed(self._model.source_moments)

    def look(self, images: int, classes: Classes, opening: float) -> "StreamLook":
        """A look for a pass over `images` images, of which each may come in several views."""
        views = self._model.moments_layout.views
        early, late = self._weights(images, images * classes.expected_weight)
        return StreamLook(
            images,
            views(self._model.source_moments),
            views(self.followed.moments),
            {name: late if is_late else early for name, is_late in self._late.items()},
            {name: self._blend * (opening if late else 1) for name, late in self._late.items()},
            self._late,
        )

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        share = prediction.pending.share
        assert isinstance(share, StreamShare)
        counted = torch.from_numpy(prediction.pending.after["classes"].weights)
        total, before = float(counted.sum()), self.followed
        each = (counted / total).to(before.moments)
        early, late = self._weights(share.images, total)
        moved = self._model.moments_layout.views(before.moments)
        for name, moments in share.moments.items():
            moved[name] = torch.lerp(moved[name], moments.to(moved[name]), early)
        for name, moments in share.image_moments.items():
            mean = torch.tensordot(each, moments.to(moved[name]), dims=1)
            moved[name] = torch.lerp(moved[name], mean, late)
        flat = [moved[name] for name in self._model.moments_layout.shapes]
        self.followed = Followed(
            torch.cat(flat, dim=1) if flat else before.moments,
            before.early_images + share.images,
            before.late_images + total,
        )

    def _weights(self, early: float, late: float) -> tuple[float, float]:
        """What so many images weigh in early and late layers, beside all before."""
        before = self.followed
        return (
            _weight(early, before.early_images, self._early_horizon),
            _weight(late, before.late_images, self._late_horizon),
        )

    def state(self) -> State:
        return {
            "moments": NamedTensors(
                self._model.moments_in_state,
                self.followed.moments.flatten().clone(),
                early_images=self.followed.early_images,
                late_images=self.followed.late_images,
            )
        }

    def restore(self, state: State) -> None:
        moments = state["moments"]
        flat, source = self._model.moments_in_state.flattened(moments), self._model.source_moments
        self.followed = Followed(
            flat.to(source).view(2, -1),
            bounded(moments["early_images"]),
            bounded(moments["late_images"]),
        )


def _weight(images: float, before: float, horizon: int) -> float:
    rate = max(1 / (WARM_START + before), 1 / horizon)
    return float(1 - (1 - rate) ** images)


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
        self._first_layer = next(iter(late), None)
        self._first: Tensor | None = None

    def __call__(self, call: Call) -> Tensor:
        name = call.layer
        with torch.no_grad():
            late = self._late[name]
            first = name == self._first_layer and call.number == 0
            if late or first:
                by_image = self._by_image(call.image_moments())
                found = by_image if late else by_image.mean(0)
                if first:
                    self._first = by_image
            else:
                found = call.moments()
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
        return StreamShare(self._images, early, late, self._first)

    def _by_image(self, found: Tensor) -> Tensor:
        """(N, 2, C) of a layer's rows (R, 2, C)."""
        if len(found) % self._images:  # it sees other things than images
            return found.mean(0).expand(self._images, *found.shape[1:])
        # The views of an image, which stand behind one another, are one look at it.
        return found.view(-1, self._images, *found.shape[1:]).mean(0)
