"""A frozen network as one row of operations, by oneDNN on the CPU.

A convolution, what normalises it, what is added to it and the cut at 0 are one operation. It
answers as the network does with its own scales, shifts and statistics, up to rounding, in about
half of the time. Only what is known layer by layer is written so: networks of torch's,
torchvision's and our own classes, whose path depends on nothing but the images.

oneDNN lays a convolution's weights out by the images it gets, and lays them out anew in every pass
where they lie otherwise: for a lone image that took longer than all the rest. So there are two
rows of operations, one for a lone image and one for several; weights that lie alike are shared.
How it lays them out depends on the number of torch's threads as well: they are packed for that of
the thread that packs. No pass lays weights out anew, then, for one image and for two with as many
threads; larger batches may (with 4 threads those of 8 do), where it weighs little.
"""

import operator
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

_KNOWN = ("torch", "torchvision", "ttc_core")
_LAYERS = (
    *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear, nn.Identity, nn.Dropout, nn.Flatten),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)
_ADD = (operator.add, operator.iadd, torch.add)
_RELU = (F.relu, torch.relu)
_FUNCTIONS = (*_ADD, *_RELU, operator.getitem, F.pad, torch.flatten)
_METHODS = ("mean", "flatten", "relu")
# Two at once would each bring back what the other had put into nn.Module.
_tracing = threading.Lock()
# Of the largest logit: how far rounding may lead from the network's own.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
_SEVERAL = 2
_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

Network = Callable[[Tensor], Tensor]
# Weights as oneDNN wants them, by the layer and how they lie.
Packed = dict[tuple[str, bytes], Tensor]

between_passes: ContextVar[Callable[[Callable[[], Any]], Any]] = ContextVar(
    "between_passes", default=lambda call: call()
)
"""Calls something while no other thread runs a network, in the thread that runs them, and returns
what that does. Whoever makes models beside threads that answer sets it."""


def fused(module: nn.Module, side: int, dtype: torch.dtype = torch.float32) -> Network | None:
    """The network written so; None where it cannot be, or answers otherwise.

    To be called as a model is made, in a thread with as many of torch's threads as passes will
    have. torch.fx changes nn.Module for the whole process while it traces: a pass of any network in
    another thread may fail then, or come into the trace, unless `between_passes` keeps it from
    running; it has the weights packed, too, one layer at a time.

    Args:
        module: on the CPU, in float32 and in evaluation mode; neither it nor its weights change
            afterwards. Linear layers are called as they are, hooks included.
        side: pixels of an image that it takes.
        dtype: what it is to compute in, float32 or bfloat16. Of bfloat16 are what goes into a
            convolution, its weights, and what comes out; it is to be run with autocast, which
            linear layers need.
    """
    if not _HAS_ONEDNN or not all(map(_is_known, module.modules())):
        return None
    kinds = {(tensor.device.type, tensor.dtype) for tensor in module.parameters()}
    if kinds != {("cpu", torch.float32)}:
        return None
    drawn = torch.Generator().manual_seed(0)
    images = torch.randn((_SEVERAL, 3, side, side), generator=drawn)
    try:
        packed: Packed = {}
        lone, several = (
            _Writer(module, dtype, images[:count], packed).network for count in (1, _SEVERAL)
        )
        with torch.no_grad():
            wanted = module(images.clone())
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                found = several(images), torch.cat([lone(image[None]) for image in images])
    except Exception:  # its path hangs on the images, or is of operations that are not known
        return None
    limit = _TOLERANCE[dtype] * float(wanted.abs().max())
    if not all(float((wanted - each).abs().max()) <= limit for each in found):
        return None
    return lambda images: (lone if len(images) == 1 else several)(images)


def _is_known(layer: nn.Module) -> bool:
    """Whether its code is known, and nothing was hung into it."""
    has_hooks = layer._forward_hooks or (layer._forward_pre_hooks and type(layer) is not nn.Linear)
    own = "forward" in vars(layer)
    return type(layer).__module__.partition(".")[0] in _KNOWN and not (has_hooks or own)


def _traced(module: nn.Module) -> fx.GraphModule:
    with _tracing:
        return fx.symbolic_trace(module)


class _Writer:
    """Writes a network's row of operations anew, of convolutions in `dtype`, for as many `images`.

    Weights that are in `packed`, and lie as they have to, are taken from there; others are added.

    Attributes:
        network: the new one.

    Raises:
        Exception: its path depends on the images, or an operation is not known.
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, images: Tensor, packed: Packed
    ) -> None:
        self._dtype, self._packed = dtype, packed
        self.network: fx.GraphModule = between_passes.get()(partial(_traced, module))
        self._graph: fx.Graph = self.network.graph
        self._written: set[fx.Node] = set()
        nodes = list(self._graph.nodes)
        for node in nodes:
            self._check(node)
        with torch.no_grad():
            ShapeProp(self.network).propagate(images.clone())
        for node in nodes:
            if node.op == "placeholder":
                self._lay_out(node)
            elif isinstance(layer := self._layer(node), nn.Conv2d):
                self._fuse(node, layer)
        self.network.delete_all_unused_submodules()
        self.network.recompile()
        # Else the two are a ring, which the collector opens in its second round only.
        self._graph.owning_module = None

    def _layer(self, node: fx.Node) -> nn.Module | None:
        called = node.op == "call_module"
        return self.network.get_submodule(str(node.target)) if called else None

    def _check(self, node: fx.Node) -> None:
        """Raise ValueError unless it is known what an operation does."""
        known = {
            "placeholder": True,
            "output": True,
            "call_module": type(self._layer(node)) in _LAYERS,
            "call_function": node.target in _FUNCTIONS,
            "call_method": node.target in _METHODS,
        }
        if not known.get(node.op, False):
            raise ValueError(f"{node.op} {node.target} is not known")

    def _lay_out(self, images: fx.Node) -> None:
        """Have the images copied, channels last: so all that follows is laid out."""
        with self._graph.inserting_after(images):
            laid = self._graph.call_method("to", (images, self._dtype))
        laid.meta = images.meta
        images.replace_all_uses_with(laid)
        laid.args = (images, self._dtype)
        laid.kwargs = {"memory_format": torch.channels_last, "copy": True}

    def _fuse(self, convolution: fx.Node, layer: nn.Conv2d) -> None:
        """Put a convolution and what follows it in one operation."""
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return
        weight, bias, row = layer.weight.detach(), layer.bias, [convolution]
        other, cut, user = None, None, _only_user(convolution)
        if user is not None and isinstance(norm := self._layer(user), nn.BatchNorm2d):
            weight, bias = _folded(layer, norm)
            row.append(user)
            user = _only_user(user)
        if user is not None and (other := _added(user, row[-1])) is not None:
            row.append(user)
            user = _only_user(user)
        if user is not None and self._is_relu(user):
            row.append(user)
            cut = "relu"
        how = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        (images,) = convolution.all_input_nodes
        size = list(images.meta["tensor_meta"].shape)
        pack = torch.ops.mkldnn._reorder_convolution_weight
        packed = between_passes.get()(partial(pack, weight.to(self._dtype), *how, size))
        lies = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
        packed = self._packed.setdefault((convolution.name, lies), packed)
        with self._graph.inserting_before(convolution):
            kernel = self._constant(convolution, "weight", packed)
            shift = None
            if bias is not None:
                shift = self._constant(convolution, "bias", bias.detach().to(self._dtype))
        with self._graph.inserting_after(row[-1]):
            written = self._call(images, other, (kernel, shift, *how), cut, row)
        written.meta = row[-1].meta
        row[-1].replace_all_uses_with(written)
        for node in reversed(row):
            self._graph.erase_node(node)
        self._written.add(written)

    def _call(
        self,
        images: Any,
        other: fx.Node | None,
        convolution: Sequence[Any],
        cut: str | None,
        row: Sequence[fx.Node],
    ) -> fx.Node:
        operations, call = torch.ops.mkldnn, self._graph.call_function
        if other is None:
            given = (images, *convolution, cut or "none", [], "")
            return call(operations._convolution_pointwise.default, given)
        given = (*convolution, "add", 1.0, cut, [], None)
        if self._is_free(other, row):
            return call(operations._convolution_pointwise_.binary, (other, images, *given))
        return call(operations._convolution_pointwise.binary, (images, other, *given))

    def _is_free(self, other: fx.Node, row: Sequence[fx.Node]) -> bool:
        """Whether a sum may be laid down where `other` is: that is ours, and read no more."""
        order = {node: number for number, node in enumerate(self._graph.nodes)}
        return other in self._written and all(
            user in row or (user in self._written and order[user] < order[row[-1]])
            for user in other.users
        )

    def _is_relu(self, node: fx.Node) -> bool:
        return isinstance(self._layer(node), nn.ReLU) or node.target in (*_RELU, "relu")

    def _constant(self, node: fx.Node, what: str, value: Tensor) -> fx.Node:
        name = f"{node.name}_{what}"
        self.network.register_buffer(name, value)
        return self._graph.get_attr(name)


def _folded(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that normalises, too."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean if layer.bias is None else layer.bias.detach() - norm.running_mean
    bias = shift * scale if norm.bias is None else norm.bias.detach() + shift * scale
    return layer.weight.detach() * scale[:, None, None, None], bias


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(node: fx.Node, to: fx.Node) -> fx.Node | None:
    """What an operation adds to `to`; None where it does something else."""
    if node.target not in _ADD or len(node.args) != 2 or node.kwargs:
        return None
    (other, *more) = [each for each in node.args if each is not to] or [None]
    return other if isinstance(other, fx.Node) and not more else None
