"""The first run of a network of somebody's own: which input it takes, and what it answers with."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ttc_core.errors import told
from ttc_core.normalization import (
    NORMALIZATION_LAYERS,
    Routing,
    affine_parameters,
    source_look,
)
from ttc_core.plugins import torch_kept

# Sides of images, in pixels, tried in turn with a network whose factory states none.
TRIAL_SIDES = (
    *(32, 224, 64, 28, 299, 96, 128, 256, 384, 160, 192, 48, 84, 100, 112, 144, 150, 200, 227, 240),
    *(260, 288, 300, 320, 331, 336, 380, 448, 456, 480, 512, 528, 600, 416, 640, 40, 56, 72),
    *(80, 120, 176, 208, 16, 8),
)
IMAGES = 2
# A network that ran so often without answering with logits is not asked at further sides.
ENOUGH = 5
# Functions that pass on what they were given, in the names of autograd's nodes.
_PASSING = ("View", "Reshape", "ToCopy", "Clone", "Squeeze", "Unsqueeze", "Alias", "Slice", "Clamp")

# A scripted layer is of no class but by name.
_SCRIPTED = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm")


class Trial:
    """A run of a network in eval mode on two random images.

    Args:
        side: of the images in pixels; None: the first of TRIAL_SIDES that it takes.
        split: the head's name; None: it is found.

    Attributes:
        split, classes, side, dtype: the head's name, K, and the images that it took.
        features: what the head read.
        takes_any_size: whether it takes images of another size and shape, too.
        repeats: whether it answers the same images twice alike.
        fixed: the normalisation layers that it runs but whose scale or shift, wholly or in part,
            nothing else can stand for or no gradient gets to.

    Raises:
        ValueError: the network cannot be served; the sentence says the first cause.
    """

    def __init__(self, module: nn.Module, side: int | None, split: str | None) -> None:
        self._module = module
        _check_weights(module)
        watched = _watched(module, split)
        logits = self._run(side, watched)
        self.classes = logits.shape[1]
        logits = logits.clone()  # it may answer the next pass in the same memory
        self.fixed: list[str] = []
        again = self._again()
        _check_logits(logits, _last_function(again))
        scale = logits.abs().max()
        self.repeats = again is None or bool(
            ((again.detach() - logits).abs() <= _tolerance(logits) * scale).all()
        )
        self.split, self.features = self._head(logits, watched, split)
        if len(self.features) != IMAGES:
            raise ValueError(
                f"The layer {self.split} reads {tuple(self.features.shape)} for {IMAGES} images; "
                "expected is a row of features for each."
            )
        # Neither square nor the side's multiple, as photographs are.
        self.takes_any_size = self._takes(self.side + 9, self.side + 5)

    def _images(self, height: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(IMAGES, 3, height, width, generator=generator, dtype=torch.float32)
        return images.to(next(self._module.parameters()).device, self.dtype)

    def _run(self, side: int | None, watched: dict[str, nn.Module]) -> Tensor:
        """Find the precision and side of images that the network answers with logits."""
        failed: str | None = None
        answered: list[str] = []
        inputs = product(precisions(self._module), (side,) if side else TRIAL_SIDES)
        for dtype, tried_side in inputs:
            self.dtype, self.side = dtype, tried_side
            self._seen: dict[str, tuple[Tensor, Tensor]] = {}
            images = self._images(self.side, self.side)
            handles = [
                layer.register_forward_hook(partial(self._keep, name), with_kwargs=True)
                for name, layer in watched.items()
            ]
            try:
                with torch.no_grad(), torch_kept():
                    logits = self._module(images)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a network of someone's own may raise anything
                failed = failed or told(error)
                continue
            finally:
                for handle in handles:
                    handle.remove()
            wrong = _wrong_form(logits)
            if wrong is None and not logits.isfinite().all():
                wrong = _where_it_begins(self._module, images)
            if wrong is None:
                assert isinstance(logits, Tensor)
                return logits
            answered.append(wrong)
            if len(answered) == ENOUGH or not isinstance(logits, Tensor) or logits.ndim != 2:
                break
        if answered:  # it did run: that tells more than where it did not
            raise ValueError(answered[0])
        tried = f"{side} pixels" if side else f"any of {len(TRIAL_SIDES)} usual sizes"
        raise ValueError(
            f"The network does not run on RGB images of {tried}: {failed}. Where it wants "
            "another size, --size says so, or a factory: SourceModel(..., size=…)."
        )

    def _keep(
        self, name: str, _layer: nn.Module, inputs: Iterable[Any], named: dict[str, Any], out: Any
    ) -> None:
        features = first_tensor((*inputs, *named.values()))
        if features is not None and isinstance(out, Tensor):
            self._seen[name] = features, out

    def _head(
        self, logits: Tensor, watched: dict[str, nn.Module], split: str | None
    ) -> tuple[str, Tensor]:
        if split is not None:
            if split not in self._seen:
                raise ValueError(
                    f"split={split!r} names a layer that a forward pass does not reach."
                )
            return split, self._seen[split][0]
        for name, (features, output) in reversed(self._seen.items()):
            if output.numel() == logits.numel() and torch.equal(output.flatten(1), logits):
                return name, features
        raise ValueError(
            "The split into features and head was not found: no linear layer's output is the "
            "network's output. Give SourceModel(..., split='NAME'), the name of the layer whose "
            "input are the features."
        )

    def _again(self) -> Tensor | None:
        """Its answer to the images of the trial with a graph; None: with one it does not run.

        Copies stand for scales and shifts, as in every later pass. What the graph leads to is what
        the network computed with: the copy, or its own past the routing.
        """
        affine = affine_parameters(self._module)
        copies = {name: own.detach().clone() for name, own in affine.items()}
        run: set[int] = set()

        def note(layer: nn.Module, _inputs: object) -> None:
            run.update(map(id, layer.parameters(recurse=False)))

        handles = [
            layer.register_forward_pre_hook(note)
            for layer in self._module.modules()
            if isinstance(layer, NORMALIZATION_LAYERS)
        ]
        routing = Routing({}, source_look, [(own, copies[name]) for name, own in affine.items()])
        try:
            with torch.enable_grad(), torch_kept():
                # A leaf could not be written into.
                images = self._images(self.side, self.side).requires_grad_() * 1
                for tensor in (*affine.values(), *copies.values()):
                    tensor.requires_grad_()
                with routing:
                    answer = self._module(images)
        except Exception:  # without gradients it did run
            return None
        finally:
            for own in affine.values():
                own.requires_grad_(False)
            for handle in handles:
                handle.remove()
        if not isinstance(answer, Tensor) or len(answer) != IMAGES:
            return None
        leaves = _leaves(answer)
        fixed = (
            name.rpartition(".")[0] or "the network"
            for name, own in affine.items()
            if id(own) in leaves or (id(own) in run and id(copies[name]) not in leaves)
        )
        scripted = (
            name
            for name, layer in self._module.named_modules()
            if isinstance(layer, torch.jit.ScriptModule)
            and layer.original_name.startswith(_SCRIPTED)
            and any(True for _ in layer.parameters(recurse=False))
        )
        self.fixed = list(dict.fromkeys((*fixed, *scripted)))
        return answer

    @torch.no_grad()
    def _takes(self, height: int, width: int) -> bool:
        try:
            with torch_kept():
                logits = self._module(self._images(height, width))
        except KeyboardInterrupt:
            raise
        except BaseException:
            return False
        fits = isinstance(logits, Tensor) and logits.shape == (IMAGES, self.classes)
        return fits and bool(logits.isfinite().all())


def first_tensor(values: Iterable[Any]) -> Tensor | None:
    """The first tensor among a layer's arguments."""
    return next((value for value in values if isinstance(value, Tensor)), None)


def _watched(module: nn.Module, split: str | None) -> dict[str, nn.Module]:
    layers = dict(module.named_modules())
    if split is None:
        return {
            name: layer
            for name, layer in layers.items()
            if isinstance(layer, nn.Linear)
            or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
        }
    if not split or split not in layers:
        raise ValueError(f"split={split!r} names no layer of the network.")
    return {split: layers[split]}


def precisions(module: nn.Module) -> Iterator[torch.dtype]:
    """What images may have to be: weights can be of several kinds, and the first need not read."""
    found = dict.fromkeys(p.dtype for p in module.parameters() if p.is_floating_point())
    return iter(found | {torch.float32: None})


def _check_weights(module: nn.Module) -> None:
    """Refuse what holds no numbers where test-time adaptation starts from.

    Raises:
        ValueError: a layer without memory, or a scale, shift or statistic that is not finite.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the device meta, where weights hold no numbers; load some first."
            )
    for prefix, layer in module.named_modules():
        fault = _fault_of(layer) if isinstance(layer, NORMALIZATION_LAYERS) else None
        if fault is not None:
            raise ValueError(f"The weights are damaged: {prefix or 'the network'}.{fault}.")


def _fault_of(layer: nn.Module) -> str | None:
    """What is wrong with a layer's own numbers: "NAME holds NaN", say."""
    own = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
    for name, tensor in own:
        if nn.parameter.is_lazy(tensor) or not tensor.is_floating_point():
            continue
        if tensor.isnan().any():
            return f"{name} holds NaN"
        if tensor.isinf().any():
            return f"{name} holds infinity"
        if (
            name == "running_var"
            and tensor.numel()
            and tensor.min() <= -float(getattr(layer, "eps", 0))
        ):
            return f"{name} holds a negative variance, {tensor.min():.3g}"
    return None


def _wrong_form(logits: object) -> str | None:
    """Say what is wrong with the form of an answer to IMAGES images, if anything is."""
    got = type(logits).__name__
    if isinstance(logits, Tensor):
        rows, *classes = logits.shape or (0,)
        if rows == IMAGES and len(classes) == 1 and classes[0] >= 2 and logits.is_floating_point():
            return None
        got = f"{tuple(logits.shape)}" + ("" if logits.is_floating_point() else f" {logits.dtype}")
    return (
        f"The network must answer with logits (N, K >= 2); to {IMAGES} images it answers with "
        f"{got}. Have its forward return the logits alone."
    )


@torch.no_grad()
def _where_it_begins(module: nn.Module, images: Tensor) -> str:
    """Name the first layer whose output is not finite."""
    first: list[tuple[str, nn.Module, str]] = []

    def look(name: str, layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not first and not output.isfinite().all():
            first.append((name, layer, "NaN" if output.isnan().any() else "infinity"))

    handles = [
        layer.register_forward_hook(partial(look, name)) for name, layer in module.named_modules()
    ]
    try:
        module(images)
    finally:
        for handle in handles:
            handle.remove()
    sentence = (
        f"The network answers {IMAGES} images of {images.shape[3]} pixels with NaN or infinity"
    )
    if not first:
        return f"{sentence}."
    name, layer, kind = first[0]
    fault = _fault_of(layer)
    because = f": its {fault}" if fault is not None else ""
    where = f"{name!r} ({type(layer).__name__})" if name else type(layer).__name__
    return f"{sentence}; {kind} begins in {where}{because}."


def _leaves(answer: Tensor) -> set[int]:
    """The ids of the tensors that a graph ends in. No function of the network's is called."""
    found: set[int] = set()
    pending, seen = [answer.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        pending += [before for before, _ in node.next_functions]
    return found


def _last_function(answer: Tensor | None) -> str:
    """Name the function that made the network's answer, as autograd does; "" if unknown."""
    node = getattr(answer, "grad_fn", None)
    while node is not None and node.name().startswith(_PASSING) and node.next_functions:
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return "" if node is None else str(node.name())


def _tolerance(logits: Tensor) -> float:
    return 1e-4 if logits.dtype in (torch.float32, torch.float64) else 2e-2


def _check_logits(logits: Tensor, function: str) -> None:
    """Refuse answers that are no logits: softmax would be taken of them once more.

    Log-probabilities are logits: their softmax is what they are the logarithm of.

    Raises:
        ValueError: they are probabilities, or the function that made them bounds them.
    """
    values = logits.double()
    tolerance = _tolerance(logits)

    def adds_up(numbers: Tensor, dimension: int, total: float = 1.0) -> bool:
        sums = numbers.sum(dimension)
        return bool((numbers >= 0).all() and ((sums / total - 1).abs() < tolerance).all())

    kind = None
    if adds_up(values, 1) or adds_up(values, 1, 100) or function.startswith("Softmax"):
        kind = "probabilities (softmax)"
    elif adds_up(values, 0):
        kind = "probabilities over the batch"
    elif (values >= 0).all() and adds_up((-values).exp(), 1):
        kind = "negative log-probabilities"
    elif function.startswith(("Sigmoid", "LogSigmoid", "Hardsigmoid")):
        kind = "probabilities of each class apart (sigmoid)"
    elif function.startswith("LogSoftmax") and not adds_up(values.exp(), 1):
        kind = "log-probabilities over another dimension than the classes"
    if kind is not None:
        raise ValueError(
            f"The network answers with {kind}, not with logits; leave its last function out, so "
            "that it answers with what goes into it."
        )
