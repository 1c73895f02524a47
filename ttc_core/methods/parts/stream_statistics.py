"""BatchNorm statistics for a camera's stream: early layers follow fast, late ones with care.

What light, weather and lens do shows in the early layers, whatever the class: their moments follow
within tens of images. Late layers see classes: theirs follow slowly, with every class counting
alike, once the answers have been diverse and not where they are of few classes of late
(`diversity`). All are a blend of the source's and the stream's. Where the source is surer of the
same images (`shadow`), a way from its moments that is short beside what sets single images apart
may be the classes' own, and less of it is gone.
METHOD §1.9.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ttc_core.envelope.ledger import Ledger
from ttc_core.envelope.limits import Limits
from ttc_core.flat import NamedTensors
from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import bounded
from ttc_core.methods.parts.diversity import Classes
from ttc_core.model import SourceModel
from ttc_core.normalization import Call, OwnLook, Parted, image_moments, source_look

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
        limits: of what an image may weigh; ledger: where it is noted that one would have weighed
            more. None: there is no limit.

    Attributes:
        followed: what they are.
    """

    followed: Followed

    def __init__(
        self,
        model: SourceModel,
        *,
        blend: float,
        early_horizon: int,
        late_horizon: int,
        limits: Limits | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._model, self._blend = model, blend
        self._limits, self._ledger = limits or Limits(model), ledger or Ledger()
        self._early_horizon, self._late_horizon = early_horizon, late_horizon
        channels = [count for (count,) in model.moments_layout.shapes.values()]
        # Of each early layer, how many it has; they lie before those of the late ones.
        self._early = channels[: math.ceil(EARLY * len(channels))]
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
        wanted = self._wanted_weights(images, images * classes.expected_weight, classes)
        weights = [min(each, self._limits.weight_of(images)) for each in wanted]
        blends = self._blend * trust, self._blend * trust * opening
        source, stream = map(self._parted, (self._model.source_moments, self.followed.moments))
        kept = [
            (1 - blend) * theirs + blend * (1 - weight) * ours
            for theirs, ours, blend, weight in zip(source, stream, blends, weights, strict=True)
        ]
        early, late = (blend * weight for blend, weight in zip(blends, weights, strict=True))
        names = self._model.moments_layout.shapes
        return StreamLook(
            images,
            NamedTensors(self._model.moments_layout, torch.cat(kept, dim=1)),
            {n: early if place < len(self._early) else late for place, n in enumerate(names)},
        )

    def trust(self, doubt: float, followed: Followed) -> float:
        """How much of the way from the source's moments is not of the classes, by early layers."""
        if not doubt or not self._early:
            return 1.0
        source, now = (
            self._parted(each)[0] for each in (self._model.source_moments, followed.moments)
        )
        ways = self._distances(now, source, source)
        way = float((ways / followed.spreads.clamp(min=1e-9)).mean())
        reach = way * (1 + way)
        return reach / (reach + DOUBTED * doubt)

    def after(self, share: StreamShare, classes: Classes) -> Followed:
        """What the stream will have led to after a batch, given the classes with its answers."""
        before, counted = self.followed, torch.from_numpy(classes.weights)
        total = float(counted.sum())
        by_class = (counted / total).to(before.moments)
        early_weight, late_weight = (
            min(*each) for each in self._wanted_and_allowed(share.images, classes)
        )
        moments, spreads = before.moments, before.spreads
        found, names = share.image_moments, list(self._model.moments_layout.shapes)
        if found:
            # A layer that the pass left out keeps its moments, and its spread.
            known = NamedTensors(self._model.moments_layout, moments)
            left_out = [name for name in names if name not in found]
            rows = {name: known[name].expand(share.images, 2, -1) for name in left_out}
            whole = {**found, **rows}
            early, late = self._parted(torch.cat([whole[n] for n in names], dim=2).to(moments))
            of_early, of_late = self._parted(moments)
            of_early = torch.lerp(of_early, early.mean(0), early_weight)
            mean = torch.tensordot(by_class, late, dims=1)
            moments = torch.cat((of_early, torch.lerp(of_late, mean, late_weight)), dim=1)
            source, _ = self._parted(self._model.source_moments)
            spreads = torch.lerp(spreads, self._distances(early, of_early, source), early_weight)
            for place, name in enumerate(names[: len(self._early)]):
                if name in rows:
                    spreads[place] = before.spreads[place]
        return Followed(
            moments,
            spreads,
            before.early_images + share.images,
            before.late_images + (0.0 if classes.narrowed else total),
        )

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        share, classes = prediction.pending.share, prediction.pending.after["classes"]
        assert isinstance(share, StreamShare)
        assert isinstance(classes, Classes)
        both = self._wanted_and_allowed(share.images, classes)
        if share.image_moments and any(wanted > allowed for wanted, allowed in both):
            self._ledger.cut("image_in_statistics")
        self.followed = self.after(share, classes)

    def _parted(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Moments (…, P) of the early layers, and of the late ones."""
        early = sum(self._early)
        return moments[..., :early], moments[..., early:]

    def _distances(self, moments: Tensor, others: Tensor, source: Tensor) -> Tensor:
        """(E,) of each early layer the mean square distance of moments (…, 2, P), in deviations of
        what a Gaussian layer has."""
        mean, square = source
        # A channel that is constant in the source has none.
        variance = (square - mean.square()).clamp(min=1e-6)
        of_square = 2 * variance.square() + 4 * mean.square() * variance
        away = (moments - others).square() / torch.stack((variance, of_square))
        return torch.stack([layer.mean() for layer in torch.split(away, self._early, dim=-1)])

    def _wanted_and_allowed(
        self, images: int, classes: Classes
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """What a batch should weigh in early layers, and in late ones; each with what it may, so
        that the image that counts for most weighs no more than is allowed."""
        total = float(classes.weights.sum())
        early, late = self._wanted_weights(images, total, classes)
        alike = total / max(float(classes.weights.max()), 1e-9)
        return (early, self._limits.weight_of(images)), (late, self._limits.weight_of(alike))

    def _wanted_weights(self, early: float, late: float, classes: Classes) -> tuple[float, float]:
        """What so many images should weigh in early and late layers, beside all before."""
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


class StreamLook(OwnLook):
    """Normalise with blended statistics, moved by the batch at hand.

    Args:
        images: of the batch, each of which may come in several views.
        kept: by layer, (2, C), the blend without the batch's own moments. A layer that is not in it
            is normalised with the source's.
        moves: by layer, what those weigh in it.
    """

    def __init__(self, images: int, kept: Mapping[str, Tensor], moves: Mapping[str, float]) -> None:
        self.images, self.kept, self.moves = images, kept, moves
        # By layer, in each image, the mean over its calls.
        self._found: dict[str, Tensor] = {}

    def __call__(self, call: Call) -> Tensor:
        name = call.layer
        if name not in self.kept:
            return source_look(call)
        found = self._by_image(image_moments(call.x.detach()))
        if call.number > 0:
            found = torch.lerp(self._found[name], found, 1 / (call.number + 1))
        self._found[name] = found
        kept = self.kept[name]
        return call.blended(torch.add(kept, found.mean(0).to(kept), alpha=self.moves[name]))

    def saw(self, found: Tensor, parted: Parted) -> None:
        self._found = {name: calls[-1] for name, calls in parted(found).items()}

    def share(self) -> StreamShare:
        """What the batch adds; complete after the forward pass."""
        return StreamShare(self.images, self._found)

    def _by_image(self, found: Tensor) -> Tensor:
        """(N, 2, C) of a layer's rows (R, 2, C)."""
        if len(found) not in (self.images, 2 * self.images):  # it sees other things than images
            return found.mean(0).expand(self.images, *found.shape[1:])
        # An image and its view, which stand behind one another, are one look at it.
        return found.view(-1, self.images, *found.shape[1:]).mean(0)
