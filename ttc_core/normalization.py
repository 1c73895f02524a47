"""Where a BatchNorm layer takes its statistics from, and which parameters adapt.

A forward pass is given a *look* at the statistics: `SOURCE` (the layers' own running averages), a
`BatchLook` (those of the batch itself, as in the paper) or a `MovingLook` (averages that follow
the stream image by image). The network is not rebuilt for it: a look answers the calls of
`torch.nn.functional.batch_norm` while it runs. LayerNorm and GroupNorm take part with their
affine parameters alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

NORMALIZATION_LAYERS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


def affine_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return scale and shift of every normalisation layer, under the network's own names.

    Raises:
        ValueError: there is none, so nothing could adapt.
    """
    found: dict[str, Tensor] = {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, layer in module.named_modules()
        if isinstance(layer, NORMALIZATION_LAYERS)
        for name, parameter in layer.named_parameters(recurse=False)
    }
    if not found:
        raise ValueError(
            "The network has no BatchNorm, LayerNorm or GroupNorm layer with scale and shift; "
            "there is nothing that test-time adaptation could move."
        )
    return found


def batch_norm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


# Answers the BatchNorm calls of one forward pass: the layer's name, its input x (N, C, …), the
# source's mean and variance (C,), weight, bias and eps -> x normalised.
Look = Callable[[str, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, float], Tensor]


def SOURCE(
    _layer: str,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Normalise with the source's running statistics."""
    return F.batch_norm(x, mean, variance, weight, bias, eps=eps)


@dataclass(frozen=True)
class BatchLook:
    """Normalise with the batch's own mean and biased variance, over N·H·W.

    Args:
        source_images: how many images the source's statistics are worth beside the batch's
            (Schneider et al. 2020, METHOD §1.2). 0: the batch alone. Above 0 the batch's variance
            is the unbiased one, as in that paper's code.
    """

    source_images: int = 0

    def __call__(
        self,
        _layer: str,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        if self.source_images == 0:
            return _batch_normalize(x, weight, bias, eps)
        values = x.numel() // x.shape[1]
        dimensions = _all_but_channels(x)
        batch_variance, batch_mean = torch.var_mean(x, dimensions, correction=min(1, values - 1))
        share = len(x) / (self.source_images + len(x))
        blended_mean = torch.lerp(mean, batch_mean, share)
        blended_variance = torch.lerp(variance, batch_variance, share)
        return F.batch_norm(x, blended_mean, blended_variance, weight, bias, eps=eps)


@dataclass(frozen=True)
class Share:
    """What one batch adds to moving statistics: its moments by layer, and its number of images."""

    images: int
    moments: Mapping[str, tuple[Tensor, Tensor]]


class Statistics(Protocol):
    """Where one stream's BatchNorm layers take their statistics from."""

    moves: bool

    def look(self, images: int) -> Look:
        """A look for a pass over `images` images (each may come in several views)."""

    def repeated(self, look: Look) -> Look:
        """A look for further passes over altered copies of the images of a finished pass."""

    def share(self, look: Look) -> Share | None:
        """What the batch of a finished pass adds; None where nothing moves."""

    def commit(self, share: Share | None) -> None:
        """Let a batch's share move the statistics."""

    def reset(self) -> None:
        """Back to the source's statistics."""

    def state(self) -> dict[str, Any]:
        """What has moved."""

    def restore(self, state: Mapping[str, Any]) -> None:
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

    def commit(self, share: Share | None) -> None:
        """Nothing moves."""

    def reset(self) -> None:
        """Nothing has moved."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing has moved."""


class MovingStatistics:
    """Moments E[x] and E[x²] of each BatchNorm layer that follow a stream image by image.

    They start from the source's. A batch of n images moves them by
    m ← m + (1 − (1 − a)ⁿ)(m_batch − m), a = max(1 / (warm_start + images seen), floor).
    A pass normalises with the moments *after* the move, the current images included, and takes
    them for constants in the gradient; `commit` makes the move last. METHOD §1.8.
    """

    moves = True

    def __init__(self, layers: Mapping[str, _BatchNorm], *, warm_start: int, floor: float) -> None:
        self._layers = layers
        self._warm_start, self._floor = warm_start, floor
        self.reset()

    def reset(self) -> None:
        self.images_seen = 0
        self.moments = {name: _source_moments(layer) for name, layer in self._layers.items()}

    def look(self, images: int) -> Look:
        return MovingLook(self.moments, self._weight(images), images)

    def repeated(self, look: Look) -> Look:
        """Normalise as the finished pass did; nothing more moves."""
        assert isinstance(look, MovingLook)
        return look.again

    def share(self, look: Look) -> Share:
        assert isinstance(look, MovingLook)
        return look.share

    def commit(self, share: Share | None) -> None:
        assert share is not None
        weight = self._weight(share.images)
        # A layer that the pass left out (an auxiliary head, say) keeps its moments.
        self.moments = self.moments | {
            name: _move(self.moments[name], moments, weight)
            for name, moments in share.moments.items()
        }
        self.images_seen += share.images

    def _weight(self, images: int) -> float:
        rate = max(1 / (self._warm_start + self.images_seen), self._floor)
        return float(1 - (1 - rate) ** images)

    def state(self) -> dict[str, Any]:
        """The moments and the number of images seen."""
        moments = {
            f"moment{order}.{name}": moment.clone()
            for name, moments in self.moments.items()
            for order, moment in enumerate(moments, start=1)
        }
        return {**moments, "images_seen": self.images_seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        device = {name: moments[0].device for name, moments in self.moments.items()}
        self.moments = {
            name: (
                state[f"moment1.{name}"].to(device[name], copy=True),
                state[f"moment2.{name}"].to(device[name], copy=True),
            )
            for name in self._layers
        }
        self.images_seen = int(state["images_seen"])


class MovingLook:
    """Normalise with moving statistics, moved by the batch at hand; `share` keeps its part."""

    def __init__(
        self, moments: Mapping[str, tuple[Tensor, Tensor]], weight: float, images: int
    ) -> None:
        self._moments, self._weight, self._images = moments, weight, images
        self._batch: dict[str, tuple[Tensor, Tensor]] = {}
        self._used: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(
        self,
        layer: str,
        x: Tensor,
        _mean: Tensor,
        _variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        with torch.no_grad():
            self._batch[layer] = _moments(x)
            mean, square = _move(self._moments[layer], self._batch[layer], self._weight)
            # Rounding may leave a constant channel's variance a little below 0.
            variance = (square - mean.square()).clamp_(min=0)
        self._used[layer] = mean, variance
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    def again(
        self,
        layer: str,
        x: Tensor,
        _mean: Tensor,
        _variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        """A look of its own: the mean and variance that the finished pass used."""
        mean, variance = self._used[layer]
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @property
    def share(self) -> Share:
        """The batch's own moments; complete after the forward pass."""
        return Share(self._images, self._batch)


class Routing(TorchFunctionMode):
    """While active, hands the BatchNorm calls of a network to a look.

    Layers are recognised by their running mean. Those that keep none always use the batch's
    statistics, here as everywhere.
    """

    def __init__(self, layers: Mapping[str, _BatchNorm], look: Look) -> None:
        super().__init__()
        self._names = {id(layer.running_mean): name for name, layer in layers.items()}
        self._look = look

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.batch_norm:
            return function(*args, **kwargs)
        return self._batch_norm(*args, **kwargs)

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Stands in for `torch.nn.functional.batch_norm`, whose arguments these are."""
        if running_mean is None and running_var is None:
            return _batch_normalize(x, weight, bias, eps)
        name = self._names.get(id(running_mean))
        if name is None or running_mean is None or running_var is None:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        return self._look(name, x, running_mean, running_var, weight, bias, eps)


def _batch_normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    # Not F.batch_norm, which refuses one value a channel (a single image on a 1×1 map).
    return torch.batch_norm(
        x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled
    )


def _all_but_channels(x: Tensor) -> list[int]:
    return [dimension for dimension in range(x.ndim) if dimension != 1]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square of each channel of x (N, C, …)."""
    dimensions = _all_but_channels(x)
    return x.mean(dimensions), x.square().mean(dimensions)


def _source_moments(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean.clone(), layer.running_var + layer.running_mean.square()


def _move(
    moments: tuple[Tensor, Tensor], towards: tuple[Tensor, Tensor], weight: float
) -> tuple[Tensor, Tensor]:
    return (
        torch.lerp(moments[0], towards[0], weight),
        torch.lerp(moments[1], towards[1], weight),
    )
