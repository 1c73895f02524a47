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


@dataclass(frozen=True)
class Call:
    """A call of a BatchNorm layer in a forward pass.

    Attributes:
        layer: the layer's name.
        x: what is to be normalised, (N, C, …); the answer is of its type.
        mean, variance: the source's, (C,).
        weight, bias, eps: as the layer's.
        number: how often the layer was called before in this pass.
    """

    layer: str
    x: Tensor
    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    number: int = 0

    def normalized(self, mean: Tensor, variance: Tensor) -> Tensor:
        """In float32 at least: squares of half precision overflow at 256."""
        wider = _widened(self.x)
        weight, bias = _like(self.weight, wider), _like(self.bias, wider)
        mean, variance = mean.to(wider.dtype), variance.to(wider.dtype)
        return F.batch_norm(wider, mean, variance, weight, bias, eps=self.eps).to(self.x.dtype)


# Answers the BatchNorm calls of one forward pass.
Look = Callable[[Call], Tensor]


def wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: what statistics, parameters that adapt and answers are kept in."""
    return torch.promote_types(dtype, torch.float32)


def SOURCE(call: Call) -> Tensor:
    """Normalise with the source's running statistics."""
    return F.batch_norm(call.x, call.mean, call.variance, call.weight, call.bias, eps=call.eps)


@dataclass(frozen=True)
class BatchLook:
    """Normalise with the batch's own mean and biased variance, over N·H·W.

    Args:
        source_images: how many images the source's statistics are worth beside the batch's
            (Schneider et al. 2020, METHOD §1.2). 0: the batch alone. Above 0 the batch's variance
            is the unbiased one, as in that paper's code.
    """

    source_images: int = 0

    def __call__(self, call: Call) -> Tensor:
        x = call.x
        if self.source_images == 0:
            return _batch_normalize(x, call.weight, call.bias, call.eps)
        values = x.numel() // x.shape[1]
        dimensions = _all_but_channels(x)
        batch_variance, batch_mean = torch.var_mean(
            _widened(x), dimensions, correction=min(1, values - 1)
        )
        share = len(x) / (self.source_images + len(x))
        return call.normalized(
            torch.lerp(call.mean.to(batch_mean), batch_mean, share),
            torch.lerp(call.variance.to(batch_mean), batch_variance, share),
        )


# E[x] and E[x²] of each channel, (C,) each.
Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Share:
    """What one batch adds to moving statistics: its moments by layer, and its number of images."""

    images: int
    moments: Mapping[str, Moments]

    def tensors(self) -> list[Tensor]:
        """All its moments; one that is not finite would spoil every later answer."""
        return [moment for moments in self.moments.values() for moment in moments]


class Statistics(Protocol):
    """Where one stream's BatchNorm layers take their statistics from."""

    moves: bool

    def look(self, images: int) -> Look:
        """A look for a pass over `images` images (each may come in several views)."""

    def repeated(self, look: Look) -> Look:
        """A look for further passes over altered copies of a finished pass's images."""

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

    A layer that a pass calls several times moves by the mean of its calls' moments; each call is
    normalised with the mean of those so far. Moments are float32 at least, whatever the network's
    precision.
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
        self.moments = {
            name: (
                state[f"moment1.{name}"].to(moments[0], copy=True),
                state[f"moment2.{name}"].to(moments[1], copy=True),
            )
            for name, moments in self.moments.items()
        }
        self.images_seen = int(state["images_seen"])


class MovingLook:
    """Normalise with moving statistics, moved by the batch at hand; `share` keeps its part."""

    def __init__(self, moments: Mapping[str, Moments], weight: float, images: int) -> None:
        self._moments, self._weight, self._images = moments, weight, images
        # By layer: the mean of its calls' moments, and the mean and variance that each call used.
        self._batch: dict[str, Moments] = {}
        self._used: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, call: Call) -> Tensor:
        with torch.no_grad():
            moments = _moments(call.x)
            if call.number > 0:
                moments = _move(self._batch[call.layer], moments, 1 / (call.number + 1))
            self._batch[call.layer] = moments
            used = _mean_and_variance(_move(self._moments[call.layer], moments, self._weight))
        self._used.setdefault(call.layer, []).append(used)
        return call.normalized(*used)

    def again(self, call: Call) -> Tensor:
        """A look of its own: the mean and variance that the finished pass used, call by call."""
        used = self._used.get(call.layer)
        if used is None:  # a pass over altered images may take other turns
            return call.normalized(*_mean_and_variance(self._moments[call.layer]))
        return call.normalized(*used[min(call.number, len(used) - 1)])

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
        self._calls: dict[str, int] = {}

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
        number = self._calls.get(name, 0)
        self._calls[name] = number + 1
        return self._look(Call(name, x, running_mean, running_var, weight, bias, eps, number))


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(wide(tensor.dtype))


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


def _batch_normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    wider = _widened(x)
    weight, bias = _like(weight, wider), _like(bias, wider)
    # Not F.batch_norm, which refuses one value a channel (a single image on a 1×1 map).
    return torch.batch_norm(
        wider, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled
    ).to(x.dtype)


def _all_but_channels(x: Tensor) -> list[int]:
    return [dimension for dimension in range(x.ndim) if dimension != 1]


def _moments(x: Tensor) -> Moments:
    """Mean and mean square of each channel of x (N, C, …)."""
    x, dimensions = _widened(x), _all_but_channels(x)
    return x.mean(dimensions), x.square().mean(dimensions)


def _source_moments(layer: _BatchNorm) -> Moments:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean = layer.running_mean.to(wide(layer.running_mean.dtype), copy=True)
    return mean, layer.running_var.to(mean.dtype) + mean.square()


def _mean_and_variance(moments: Moments) -> tuple[Tensor, Tensor]:
    mean, square = moments
    # Rounding may leave a constant channel's variance a little below 0.
    return mean, (square - mean.square()).clamp_(min=0)


def _move(moments: Moments, towards: Moments, weight: float) -> Moments:
    return (
        torch.lerp(moments[0], towards[0].to(moments[0].dtype), weight),
        torch.lerp(moments[1], towards[1].to(moments[1].dtype), weight),
    )
