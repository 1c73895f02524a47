"""The source model: a frozen network f = h∘g with its preprocessing and class names.

It is shared by every stream and never written to: a method runs it with affine parameters and
normalisation statistics of its own. Knows nothing of methods or files.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ttc_core.normalization import SOURCE, Look, Routing, affine_parameters, batch_norm_layers

# Tried in turn to trace a network whose factory states no input size.
TRACE_SIZES = (32, 224, 64, 28, 299)


@dataclass(frozen=True)
class Output:
    """What one forward pass gives: logits (N, K) and the features (N, D) the head read."""

    logits: Tensor
    features: Tensor


class SourceModel:
    """A frozen classifier, split into features g and head h, with the input it was trained on.

    Args:
        module: any network from (N, 3, H, W) to logits (N, K). It is put in eval mode and frozen.
        mean, std: per channel, for values in [0, 1]; the input is (value/255 − mean) / std.
        size: pixels. Alone, images are resized to size × size; with `crop`, their shorter side is
            resized to `size` and the central crop × crop is taken. None: images stay as they are.
        crop: see `size`.
        class_names: K names, or None for "0", "1", ….
        split: the dotted name of the head h inside `module`. None: found by tracing a forward pass
            for the linear layer, or 1×1 convolution that serves as one, whose output is the logits.
        accuracy: measured on clean test data, in [0, 1]; informative.

    Raises:
        ValueError: the split cannot be found, nothing can adapt, the classes do not fit, or a
            number is out of range.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None,
        crop: int | None = None,
        class_names: Sequence[str] | None = None,
        split: str | None = None,
        accuracy: float | None = None,
    ) -> None:
        sound = all(map(math.isfinite, (*mean, *std))) and min(std, default=0) > 0
        if len(mean) != 3 or len(std) != 3 or not sound:
            raise ValueError(
                f"mean and std must be three numbers each, std positive; got {mean} and {std}."
            )
        if (size is not None and size < 1) or (crop is not None and not 1 <= crop <= (size or 0)):
            raise ValueError(
                f"size must be 1 pixel or more, crop at most size; got size {size}, crop {crop}."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("a scripted module cannot be adapted; give the module it was made of.")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module  # the copies of a training run
        self.module = module.eval().requires_grad_(False)
        self.mean, self.std = tuple(mean), tuple(std)
        self.size, self.crop = size, crop
        self.accuracy = accuracy
        # Before anything else looks at the layers: without one to adapt the rest is pointless.
        self.affine = affine_parameters(module)
        trace = _trace(module, crop or size, split)
        self.split, self.classes = trace.split, trace.classes
        self.feature_dimension, self.trial_side = trace.features, trace.side
        self._features: Tensor | None = None
        module.get_submodule(self.split).register_forward_pre_hook(self._keep_features)
        if class_names is not None and len(class_names) != self.classes:
            raise ValueError(
                f"The network has {self.classes} classes, but {len(class_names)} class names "
                "were given."
            )
        self.class_names = tuple(class_names or map(str, range(self.classes)))
        self._place()

    def _place(self) -> None:
        """Look up what depends on the device the module is on."""
        parameter = next(self.module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.affine = affine_parameters(self.module)
        self.batch_norms = batch_norm_layers(self.module)
        self._mean = torch.tensor(self.mean, device=self.device, dtype=self.dtype)[:, None, None]
        self._std = torch.tensor(self.std, device=self.device, dtype=self.dtype)[:, None, None]

    def to(self, device: torch.device | str) -> Self:
        """Move the network; do so before any method is made on it."""
        self.module.to(device)
        self._place()
        return self

    @cached_property
    def digest(self) -> str:
        """A hash of weights, statistics and preprocessing: tells models of one spec apart."""
        digest = hashlib.sha256(repr((self.mean, self.std, self.size, self.crop)).encode())
        for name, tensor in self.module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _keep_features(self, _head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]

    def to_unit(self, images: Tensor) -> Tensor:
        """Bring images (N, 3, H, W), uint8 or float in [0, 1], to floats in [0, 1] on the device.

        Raises:
            ValueError: the shape or type is another one.
        """
        if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            raise ValueError(f"images must be (N >= 1, 3, H, W); got {tuple(images.shape)}")
        # The default memory layout whatever came in: another one would change the rounding.
        if images.dtype == torch.uint8:
            return images.to(self.device).contiguous().to(self.dtype) / 255
        if images.is_floating_point():
            return images.to(self.device, self.dtype).contiguous()
        raise ValueError(f"images must be uint8, or float in [0, 1]; got {images.dtype}")

    def normalize(self, unit: Tensor) -> Tensor:
        """Values in [0, 1] -> the network's input."""
        return (unit - self._mean) / self._std

    def run(
        self, inputs: Tensor, *, affine: Mapping[str, Tensor] | None = None, look: Look = SOURCE
    ) -> Output:
        """Run the network on normalised inputs (N, 3, H, W).

        Args:
            affine: replaces the source's normalisation parameters of these names.
            look: where the BatchNorm layers take their statistics from (`normalization`).
        """
        with Routing(self.batch_norms, look):
            logits = torch.func.functional_call(
                self.module, dict(affine or {}), (inputs,), tie_weights=False
            )
        features, self._features = self._features, None
        assert features is not None
        return Output(logits, pooled(features))


def pooled(features: Tensor) -> Tensor:
    """(N, D) as they are; a map (N, D, H, W) before a 1×1 convolution is averaged over places."""
    return features.flatten(2).mean(dim=2) if features.ndim == 4 else features.flatten(1)


class _Trace(NamedTuple):
    """What one forward pass tells: the head's name, K, D, and the side of the images it took."""

    split: str
    classes: int
    features: int
    side: int


@torch.no_grad()
def _trace(module: nn.Module, size: int | None, split: str | None) -> _Trace:
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_hook(
            lambda _layer, inputs, output: seen.__setitem__(name, (inputs[0], output))
        )

    if split is None:
        watched = {name: layer for name, layer in module.named_modules() if _may_be_head(layer)}
    else:
        layers = dict(module.named_modules())
        if not split or split not in layers:
            raise ValueError(f"split={split!r} names no layer of the network.")
        watched = {split: layers[split]}

    handles = [watch(name, layer) for name, layer in watched.items()]
    try:
        logits, side = _trial_run(module, size)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"The network must answer with logits (N, K >= 2); it answers with {got}.")

    if split is not None and split in seen:
        return _Trace(split, logits.shape[1], pooled(seen[split][0]).shape[1], side)
    for name, (features, output) in reversed(seen.items()):
        if output.numel() == logits.numel() and torch.equal(output.flatten(1), logits):
            return _Trace(name, logits.shape[1], pooled(features).shape[1], side)
    raise ValueError(
        "The split into features and head was not found: no linear layer's output is the "
        "network's output. Give SourceModel(..., split='NAME'), the name of the layer whose input "
        "are the features."
    )


def _may_be_head(layer: nn.Module) -> bool:
    pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    return isinstance(layer, nn.Linear) or pointwise


def _trial_run(module: nn.Module, size: int | None) -> tuple[object, int]:
    parameter = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    problem: Exception | None = None
    for side in (size,) if size else TRACE_SIZES:
        images = torch.rand(2, 3, side, side, generator=generator)
        try:
            return module(images.to(parameter.device, parameter.dtype)), side
        except Exception as error:  # a network of someone's own may raise anything
            problem = error
    tried = size or ", ".join(map(str, TRACE_SIZES))
    raise ValueError(f"The network does not run on RGB images of {tried} pixels: {problem}")
