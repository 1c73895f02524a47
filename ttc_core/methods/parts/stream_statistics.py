"""BatchNorm statistics for a camera's stream: early layers follow fast, late ones with care.

What light, weather and lens do shows in the early layers, whatever the class: their moments follow
within tens of images. Late layers see classes: theirs follow slowly, with every class counting
alike, once the answers have been diverse and not where they are of few classes of late
(`diversity`). All are a blend of the source's and the stream's. Where the source is surer of the
same images (`shadow`), a way from its moments that is short beside what sets single images apart
may be the classes' own, and less of it is gone.
METHOD §1.9.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

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
# In doubt, how long a way may be the classes' own, in what sets single images apart (mean squares);
# further than that no class goes, and doubt fades with the square.
DOUBTED = 10.0


@dataclass(frozen=True)
class StreamShare:
    """What one batch adds.

    Attributes:
        images: how many it has.
        image_moments: of each layer that was called, in each image, (N, 2, C).
    """

    images: int
    image_moments: Mapping[str, Tensor]

    def tensors(self) -> Sequence[Tensor]:
        return list(self.image_moments.values())


@dataclass(frozen=True)
class Followed:
    """What was made of a stream so far; never written in place.

    Attributes:
        moments: (2, C) of all layers, one behind the other.
        spreads: (E,) of the early layers, how far an image's moments are from the stream's: see
            `_distance`.
        early_images, late_images: how many images they are worth; in late layers each counts by
            its class.
    """

    moments: Tensor
    spreads: Tensor
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
        self._early = [name for name, late in self._late.items() if not late]
        self.reset()

    def reset(self) -> None:
        moments = self._model.source_moments
        self.followed = Followed(moments, _zeros(len(self._early), moments.dtype, moments.device))

    def restart(self, moments: Tensor) -> None:
        """Follow from these moments as fast as at the start."""
        self.followed = Followed(moments, self.followed.spreads)

    def look(self, images: int, classes: Classes, opening: float, trust: float) -> "StreamLook":
        """A look for a pass over `images` images, of which each may come in several views.

        Args:
            opening, trust: in [0, 1], how far late layers, and all, follow the stream.
        """
        views = self._model.moments_layout.views
        early, late = self._weights(images, images * classes.expected_weight, classes)
        blend = self._blend * trust
        return StreamLook(
            images,
            views(self._model.source_moments),
            views(self.followed.moments),
            {name: late if is_late else early for name, is_late in self._late.items()},
            {name: blend * opening if late else blend for name, late in self._late.items()},
        )

    def trust(self, doubt: float, followed: Followed) -> float:
        """How much of the way from the source's moments is not of the classes, by early layers."""
        if not doubt or not self._early:
            return 1.0
        source, now = map(
            self._model.moments_layout.views, (self._model.source_moments, followed.moments)
        )
        ways = torch.stack(
            [_distance(now[name], source[name], source[name]) for name in self._early]
        )
        way = float((ways / followed.spreads.clamp(min=1e-9)).mean())
        reach = way * (1 + way)
        return reach / (reach + DOUBTED * doubt)

    def after(self, share: StreamShare, classes: Classes) -> Followed:
        """What the stream will have led to after a batch, given the classes with its answers."""
        before, counted = self.followed, torch.from_numpy(classes.weights)
        total = float(counted.sum())
        by_class = (counted / total).to(before.moments)
        early, late = self._weights(share.images, total, classes)
        views = self._model.moments_layout.views
        source, moved = views(self._model.source_moments), views(before.moments)
        spreads = dict(zip(self._early, before.spreads.unbind(), strict=True))
        for name, found in share.image_moments.items():
            moments = found.to(moved[name])
            if self._late[name]:
                mean = torch.tensordot(by_class, moments, dims=1)
                moved[name] = torch.lerp(moved[name], mean, late)
            else:
                moved[name] = torch.lerp(moved[name], moments.mean(0), early)
                spread = _distance(moments, moved[name], source[name])
                spreads[name] = torch.lerp(spreads[name], spread, early)
        flat = [moved[name] for name in self._model.moments_layout.shapes]
        return Followed(
            torch.cat(flat, dim=1) if flat else before.moments,
            torch.stack([*spreads.values()]) if spreads else before.spreads,
            before.early_images + share.images,
            before.late_images + (0.0 if classes.narrowed else total),
        )

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        share, classes = prediction.pending.share, prediction.pending.after["classes"]
        assert isinstance(share, StreamShare)
        assert isinstance(classes, Classes)
        self.followed = self.after(share, classes)

    def _weights(self, early: float, late: float, classes: Classes) -> tuple[float, float]:
        """What so many images weigh in early and late layers, beside all before."""
        before = self.followed
        return (
            _weight(early, before.early_images, self._early_horizon),
            # What is of few classes would undo what diverse images have taught.
            0.0 if classes.narrowed else _weight(late, before.late_images, self._late_horizon),
        )

    def state(self) -> State:
        return {
            "moments": NamedTensors(
                self._model.moments_in_state,
                self.followed.moments.flatten().clone(),
                spreads=self.followed.spreads.clone(),
                early_images=self.followed.early_images,
                late_images=self.followed.late_images,
            )
        }

    def restore(self, state: State) -> None:
        moments = state["moments"]
        flat, source = self._model.moments_in_state.flattened(moments), self._model.source_moments
        self.followed = Followed(
            flat.to(source).view(2, -1),
            moments["spreads"].to(source),
            bounded(moments["early_images"]),
            bounded(moments["late_images"]),
        )


@cache
def _zeros(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One for all streams, that none writes in place: thousands may have seen nothing yet."""
    return torch.zeros(count, dtype=dtype, device=device)


def _weight(images: float, before: float, horizon: int) -> float:
    rate = max(1 / (WARM_START + before), 1 / horizon)
    return float(1 - (1 - rate) ** images)


def _distance(moments: Tensor, others: Tensor, source: Tensor) -> Tensor:
    """Mean square distance of moments (…, 2, C), in deviations of what a Gaussian layer has."""
    mean, square = source
    # A channel that is constant in the source has none.
    variance = (square - mean.square()).clamp(min=1e-6)
    of_square = 2 * variance.square() + 4 * mean.square() * variance
    return ((moments - others).square() / torch.stack((variance, of_square))).mean()


class StreamLook:
    """Normalise with blended statistics, moved by the batch at hand.

    Args:
        source, stream: moments by layer, (2, C).
        weights: by layer, of the batch's own moments beside the stream's.
        blends: by layer, of the stream's moments beside the source's.
    """

    def __init__(
        self,
        images: int,
        source: Mapping[str, Tensor],
        stream: Mapping[str, Tensor],
        weights: Mapping[str, float],
        blends: Mapping[str, float],
    ) -> None:
        self._images, self._source, self._stream = images, source, stream
        self._weights, self._blends = weights, blends
        # By layer, in each image, the mean over its calls.
        self._found: dict[str, Tensor] = {}

    def __call__(self, call: Call) -> Tensor:
        name = call.layer
        with torch.no_grad():
            found = self._by_image(call.image_moments())
            if call.number > 0:
                found = torch.lerp(self._found[name], found, 1 / (call.number + 1))
            self._found[name] = found
            source, stream = self._source[name], self._stream[name]
            moved = torch.lerp(stream, found.mean(0).to(stream), self._weights[name])
            mean, square = torch.lerp(source, moved, self._blends[name])
            # Rounding may leave a constant channel's variance a little below 0.
            variance = (square - mean.square()).clamp_(min=0)
        return call.normalized(mean, variance)

    def share(self) -> StreamShare:
        """What the batch adds; complete after the forward pass."""
        return StreamShare(self._images, self._found)

    def _by_image(self, found: Tensor) -> Tensor:
        """(N, 2, C) of a layer's rows (R, 2, C)."""
        if len(found) not in (self._images, 2 * self._images):  # it sees other things than images
            return found.mean(0).expand(self._images, *found.shape[1:])
        # An image and its view, which stand behind one another, are one look at it.
        return found.view(-1, self._images, *found.shape[1:]).mean(0)
