"""How the normalisation layers of a frozen network get scales, shifts and statistics from outside.

A forward pass is given a *look* at the BatchNorm statistics: `source_look` (the layers' own
running averages), or one that a statistics part made (`ttc_core.parts.statistics`). The network is
neither rebuilt nor written to: while a pass runs, a `Routing` stands between its layers and torch
and hands on other scales and shifts than the network's own. It is the thread's alone, so that
several threads may run the network at once, each with its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

NORMALIZATION_LAYERS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def affine_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return scale and shift of every normalisation layer, under the network's own names.

    A parameter that several layers share is there once, under its first name.
    """
    return {name: parameter for name, first, parameter in _named(module) if name == first}


def shared_parameters(module: nn.Module) -> dict[str, str]:
    """By each further name of a scale or shift that several layers share, its first."""
    return {name: first for name, first, _ in _named(module) if name != first}


def _named(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Each name of each scale and shift, its first name, and the parameter."""
    first: dict[int, str] = {}
    for prefix, layer in module.named_modules():
        if isinstance(layer, NORMALIZATION_LAYERS):
            for name, parameter in layer.named_parameters(prefix, recurse=False):
                yield name, first.setdefault(id(parameter), name), parameter


def batch_norm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


@dataclass(frozen=True)
class Rows:
    """Which of S streams each of the N rows of a pass belongs to.

    Attributes:
        index: (N,) int64, each in 0 … S − 1, on the model's device.
        counts: (S,) how many rows each stream has.
    """

    index: Tensor
    counts: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> "Rows":
        """Rows stream after stream, so many of each."""
        each = torch.tensor(counts)
        index = torch.arange(len(counts)).repeat_interleave(each)
        return cls(index.to(device), each.to(device))

    def mean(self, values: Tensor) -> Tensor:
        """(S, …): the mean over each stream's rows of (N, …)."""
        sums = values.new_zeros(len(self.counts), *values.shape[1:])
        sums.index_add_(0, self.index, values)
        return sums / self.counts.view(-1, *[1] * (values.ndim - 1))

    def check(self, x: Tensor) -> None:
        """Raise ValueError where a layer's rows are not the pass's."""
        if len(x) != len(self.index):
            raise ValueError(
                f"a normalisation layer is given {len(x)} rows for {len(self.index)} images, so "
                "that it cannot be told whose they are; this network takes one stream at a time"
            )


@dataclass(frozen=True)
class Call:
    """A call of a BatchNorm layer in a forward pass.

    Attributes:
        layer: the layer's name.
        x: what is to be normalised, (N, C, …); the answer is of its type.
        mean, variance: the source's, (C,).
        weight, bias, eps: as the pass has them: (C,), or (N, C) where each row has its own.
        number: how often the layer was called before in this pass.
        rows: whose row is whose; None: all are one stream's.
    """

    layer: str
    x: Tensor
    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    number: int = 0
    rows: Rows | None = None

    def normalized(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise x with these statistics: (C,), or (N, C) where each row has its own.

        In float32 at least, which torch computes in where all but x are.
        """
        x, wider = self.x, wide(self.x.dtype)
        mean, variance = mean.to(wider), variance.to(wider)
        weight, bias = (None if p is None else p.to(wider) for p in (self.weight, self.bias))
        if self.rows is None:
            return F.batch_norm(x, mean, variance, weight, bias, eps=self.eps)
        # As one row, of which each channel of each row is a channel: half the time of a product
        # and a sum, and less than half of their gradient's.
        rows, channels = x.shape[:2]

        def by_row(each: Tensor) -> Tensor:
            return each.expand(rows, channels).reshape(-1)

        return F.batch_norm(
            x.reshape(1, rows * channels, *x.shape[2:]),
            by_row(mean),
            by_row(variance),
            None if weight is None else by_row(weight),
            None if bias is None else by_row(bias),
            eps=self.eps,
        ).view(x.shape)

    def moments(self) -> Tensor:
        """Mean and mean square of each channel: (2, C)."""
        return self.image_moments().mean(0)

    def image_moments(self) -> Tensor:
        """Mean and mean square of each channel in each row: (N, 2, C)."""
        return image_moments(self.x)

    def blended(self, moments: Tensor) -> Tensor:
        """Normalise x with these moments: (2, C), or each stream's, (S, 2, C)."""
        with torch.no_grad():
            mean, square = moments.unbind(-2)
            # Rounding may leave a constant channel's variance a little below 0.
            variance = torch.addcmul(square, mean, mean, value=-1).clamp_(min=0)
            if self.rows is not None and moments.ndim == 3:
                mean, variance = (
                    each.index_select(0, self.rows.index) for each in (mean, variance)
                )
        return self.normalized(mean, variance)


def image_moments(x: Tensor) -> Tensor:
    """Mean and mean square of each channel in each row of x (N, C, …): (N, 2, C)."""
    values = widened(x)
    values = values.flatten(2) if x.ndim > 2 else values[..., None]
    # A norm takes half the time of squares, which it does not lay down in memory.
    squares = torch.linalg.vector_norm(values, dim=2).square()
    return torch.stack((values.sum(2), squares), dim=1) / values.shape[2]


# Answers the BatchNorm calls of one forward pass.
Look = Callable[[Call], Tensor]


def source_look(call: Call) -> Tensor:
    """Normalise with the source's running statistics."""
    if call.rows is not None:
        return call.normalized(call.mean, call.variance)
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
        if call.rows is not None:
            raise ValueError("statistics of the batch are of one stream's images only")
        x = call.x
        if self.source_images == 0:
            return _batch_normalize(x, call.weight, call.bias, call.eps)
        values = x.numel() // x.shape[1]
        dimensions = [dimension for dimension in range(x.ndim) if dimension != 1]
        batch_variance, batch_mean = torch.var_mean(
            widened(x), dimensions, correction=min(1, values - 1)
        )
        share = len(x) / (self.source_images + len(x))
        return call.normalized(
            torch.lerp(call.mean.to(batch_mean), batch_mean, share),
            torch.lerp(call.variance.to(batch_mean), batch_variance, share),
        )


class OwnLook(ABC):
    """A stream's look at moments of its own, which its batch moves: it can share a pass.

    Attributes:
        images: of the batch; its rows are these, view after view.
        kept: by layer, (2, C), what the batch's moments are added to; the source's statistics are
            for layers that are not in it.
        moves: by layer, what the batch's own moments weigh.
    """

    images: int
    kept: Mapping[str, Tensor]
    moves: Mapping[str, float]

    @abstractmethod
    def __call__(self, call: Call) -> Tensor: ...

    @abstractmethod
    def saw(self, found: Tensor, parted: "Parted") -> None:
        """Take note of a pass that was shared.

        Args:
            found: (images, 2, …) the moments in each image, of all calls one behind the other.
            parted: takes (…, 2, …) like it apart.
        """


# By layer, (…, 2, C) of each call: the mean over it and those before.
Parted = Callable[[Tensor], dict[str, list[Tensor]]]


class JoinedLook:
    """The looks of several streams at the rows of one pass, so many of each.

    Args:
        looks: S of them, of the same layers.
        kept: by layer, (S, 2, C), what each keeps.
    """

    def __init__(
        self, looks: Sequence[OwnLook], counts: Sequence[int], kept: Mapping[str, Tensor]
    ) -> None:
        self._looks, self._counts, self._kept = looks, counts, kept
        names, moves = list(kept), [look.moves for look in looks]
        weights = torch.tensor([[each[name] for name in names] for each in moves])
        columns = weights[:, :, None, None].unbind(1)
        self._moves = {
            name: column.to(self._kept[name]) for name, column in zip(names, columns, strict=True)
        }
        # By layer, of each call: (N, 2, C), the mean in each row over it and those before.
        self._found: dict[str, list[Tensor]] = {}

    def __call__(self, call: Call) -> Tensor:
        assert call.rows is not None
        name = call.layer
        if name not in self._kept:
            return source_look(call)
        with torch.no_grad():
            found, before = call.image_moments(), self._found.setdefault(name, [])
            if before:
                found = torch.lerp(before[-1], found, 1 / (len(before) + 1))
            before.append(found)
            kept = self._kept[name]
            blended = torch.addcmul(kept, self._moves[name], call.rows.mean(found).to(kept))
        return call.blended(blended)

    def tell(self) -> None:
        """Let each look know what it would have seen alone; the pass is over."""
        calls = [(name, each) for name, found in self._found.items() for each in found]
        if not calls:
            return
        sizes = [each.shape[2] for _, each in calls]

        def parted(moments: Tensor) -> dict[str, list[Tensor]]:
            parts: dict[str, list[Tensor]] = {}
            for (name, _), part in zip(calls, torch.split(moments, sizes, dim=-1), strict=True):
                parts.setdefault(name, []).append(part)
            return parts

        whole = torch.cat([each for _, each in calls], dim=2)
        for look, own in zip(self._looks, torch.split(whole, list(self._counts)), strict=True):
            # An image and its view, which stand behind one another, are one look at it.
            views = len(own) // look.images
            by_image = own.view(views, look.images, *own.shape[1:])
            look.saw(own if views == 1 else by_image.mean(0), parted)


class Routing(TorchFunctionMode):
    """While active, in this thread: gives a network's normalisation layers what is not their own.

    Calls of BatchNorm layers, which it knows by their running mean, are handed to a look; those
    that keep none always use the batch's statistics, here as everywhere. Wherever the network
    uses a parameter that is replaced, it gets the replacement.

    Args:
        replaced: pairs of a parameter of the network's and what stands in its place; with `rows`
            each stream's own, (S, …).
    """

    def __init__(
        self,
        layers: Mapping[str, _BatchNorm],
        look: Look,
        replaced: Iterable[tuple[Tensor, Tensor]] = (),
        rows: Rows | None = None,
    ) -> None:
        super().__init__()
        self._names = {id(layer.running_mean): name for name, layer in layers.items()}
        self._look, self._rows = look, rows
        self._replaced = {id(parameter): moved for parameter, moved in replaced}
        self._calls: dict[str, int] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if not self._replaced:
            return function(*args, **kwargs)
        if self._rows is None:
            own = {name: self._own(value) for name, value in kwargs.items()}
            return function(*map(self._own, args), **own)
        return self._by_row(self._rows, function, args, kwargs)

    def _own(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._replaced.get(id(value), value)
        if type(value) in (list, tuple) and any(isinstance(each, Tensor) for each in value):
            return type(value)(map(self._own, value))
        return value

    def _by_row(
        self, rows: Rows, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Call a function of torch's where scales and shifts are each stream's own."""
        if function in (F.layer_norm, F.group_norm, F.rms_norm):
            given = signature(function).bind(*args, **kwargs).arguments
            x, weight, bias = given["input"], given.pop("weight", None), given.pop("bias", None)
            rows.check(x)
            done = function(**given)
            shape = given.get("normalized_shape")
            return self._scaled(done, weight, bias, 1 if shape is None else x.ndim - len(shape))
        used = any(self._own(value) is not value for value in (*args, *kwargs.values()))
        if used and getattr(function, "__name__", "") != "__get__":  # its shape, say, is the same
            raise ValueError(
                "this network uses a scale or shift elsewhere than in its layer's own function; it "
                "takes one stream at a time"
            )
        return function(*args, **kwargs)

    def _scaled(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, place: int) -> Tensor:
        """Scale and shift x (N, …) row by row; the parameters stand at dimension `place` of it."""
        for parameter, combine in ((weight, torch.mul), (bias, torch.add)):
            if parameter is not None:
                x = combine(x, _spread(self._each(parameter), x, place, parameter.ndim))
        return x

    def _each(self, parameter: Tensor) -> Tensor:
        """What stands in a parameter's place; each row's own, (N, …), where streams have theirs."""
        moved = self._replaced.get(id(parameter))
        if moved is None:
            return parameter
        return moved if self._rows is None else moved.index_select(0, self._rows.index)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Stands in for `torch.nn.functional.batch_norm`, whose arguments these are."""
        weight, bias = (None if p is None else self._each(p) for p in (weight, bias))
        name = self._names.get(id(running_mean))
        if name is not None and running_mean is not None and running_var is not None:
            if self._rows is not None:
                self._rows.check(input)
            number = self._calls.get(name, 0)
            self._calls[name] = number + 1
            return self._look(
                Call(name, input, running_mean, running_var, weight, bias, eps, number, self._rows)
            )
        if self._rows is not None:
            raise ValueError("a layer that keeps no running mean is of one stream's images only")
        if running_mean is None and running_var is None:
            return _batch_normalize(input, weight, bias, eps)
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: what statistics, parameters that adapt and answers are kept in."""
    return torch.promote_types(dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(wide(tensor.dtype))


def _spread(values: Tensor, x: Tensor, place: int, dimensions: int) -> Tensor:
    """Bring values (…), or each row's own (N, …), into a form that meets x (N, …) elementwise.

    Args:
        place: the dimension of x at which they stand, `dimensions` of them.
    """
    behind = [1] * (x.ndim - place - dimensions)
    if values.ndim == dimensions:
        return values.reshape(*values.shape, *behind)
    return values.reshape(len(values), *[1] * (place - 1), *values.shape[1:], *behind)


def _batch_normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    # Beside a scale in float32 torch computes in it; else x is brought there, as squares of half
    # precision overflow at 256.
    wider = x if weight is not None and weight.dtype == wide(x.dtype) else widened(x)
    weight, bias = (None if p is None else p.to(wide(x.dtype)) for p in (weight, bias))
    # Not F.batch_norm, which refuses one value a channel (a single image on a 1×1 map).
    return torch.batch_norm(
        wider, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled
    ).to(x.dtype)
