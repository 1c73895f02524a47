"""A pass of a network: run with scales, shifts and statistics from outside, and its features kept.

Whoever runs it writes nothing to it, so that any number of threads may at once.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ttc_core.errors import ModelError, told
from ttc_core.fused import Network
from ttc_core.normalization import Look, Routing, Rows, source_look, wide
from ttc_core.plugins import torch_kept
from ttc_core.trial import first_tensor

# What the head reads in a pass, by thread: several may be at once.
_passing = threading.local()


@dataclass(frozen=True)
class Output:
    """What one forward pass gives: logits (N, K) and the features (N, D) the head read.

    Both are float32 at least, whatever the network's precision.
    """

    logits: Tensor
    features: Tensor


class Runner:
    """Runs a network on normalised inputs (N, 3, H, W).

    Args:
        head: the dotted name of the head, of which `note_features` was told.
        reduced: whether convolutions and linear layers are computed in bfloat16.

    Attributes:
        affine, batch_norms: what can be replaced: scales and shifts by name, and the layers whose
            statistics can.
        fused: the same network in fewer operations, as the source; None: it cannot be.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        head: str,
        classes: int,
        device: torch.device,
        affine: Mapping[str, Tensor],
        batch_norms: Mapping[str, _BatchNorm],
        fused: Network | None,
        reduced: bool,
    ) -> None:
        self._module, self._head, self._classes = module, head, classes
        self.device, self.affine, self.batch_norms = device, affine, batch_norms
        self.fused, self._reduced = fused, reduced

    def run(
        self,
        inputs: Tensor,
        affine: Mapping[str, Tensor] | None,
        look: Look,
        rows: Rows | None = None,
    ) -> Output:
        """A pass of the network.

        Args:
            rows: whose row is whose, where several streams share it: then each tensor of `affine`
                holds every stream's, (S, …). An answer is the one that its stream alone would have
                got, up to rounding.
        """
        own = [
            (self.affine[name], moved.to(self.affine[name].dtype))
            for name, moved in (affine or {}).items()
        ]
        _passing.features = None
        try:
            logits = None
            with self._computing():
                if look is source_look and not (own or rows or torch.is_grad_enabled()):
                    logits = self._run_fused(inputs)
                if logits is None:
                    logits = self._run_as_written(inputs, look, own, rows)
        except (KeyboardInterrupt, MemoryError, torch.OutOfMemoryError):
            raise  # fewer images may fit
        except BaseException as error:  # a network of somebody's own may raise anything
            raise ModelError(
                f"The network failed on images of {_pixels(inputs)}: {told(error)}."
            ) from error
        finally:
            features, _passing.features = _passing.features, None
        if not isinstance(logits, Tensor) or logits.shape != (len(inputs), self._classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(
                f"The network answered {_described(inputs)} with {got} in place of logits "
                f"{(len(inputs), self._classes)}."
            )
        if features is None or len(features) != len(inputs):
            raise ModelError(
                f"On {_described(inputs)} the head {self._head} was not given a row of features "
                "for each."
            )
        features = pooled(features)
        # A copy: the network may answer the next pass in the same memory.
        return Output(
            logits.to(wide(logits.dtype), copy=True), features.to(wide(features.dtype), copy=True)
        )

    def _computing(self) -> contextlib.AbstractContextManager[Any]:
        if not self._reduced:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _run_fused(self, inputs: Tensor) -> Tensor | None:
        """The logits; None where it cannot be run so, or fails: as written it says why."""
        try:
            return None if self.fused is None else self.fused(inputs)
        except (MemoryError, torch.OutOfMemoryError):
            raise  # as written it takes more
        except Exception:
            return None

    def _run_as_written(
        self,
        inputs: Tensor,
        look: Look,
        own: Sequence[tuple[Tensor, Tensor]],
        rows: Rows | None,
    ) -> Any:
        with torch_kept(), Routing(self.batch_norms, look, own, rows), _without_checkpoints():
            return self._module(inputs.clone())  # a copy, into which it may write


def note_features(head: nn.Module) -> None:
    """Have what a head reads be known to whoever runs its network, in that thread."""
    head.register_forward_pre_hook(_note_features, with_kwargs=True)


def _note_features(_head: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    _passing.features = first_tensor((*inputs, *named.values()))


def pooled(features: Tensor) -> Tensor:
    """(N, D) as they are; a map (N, D, H, W) before a 1×1 convolution is averaged over places."""
    return features.flatten(2).mean(dim=2) if features.ndim == 4 else features.flatten(1)


def _described(inputs: Tensor) -> str:
    return f"{len(inputs)} images of {_pixels(inputs)}"


def _pixels(inputs: Tensor) -> str:
    return f"{inputs.shape[3]} × {inputs.shape[2]} pixels"


@contextlib.contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Where a graph is made, have `torch.utils.checkpoint` fail instead of learning nonsense.

    Its second pass comes with the gradient: neither the scales and shifts nor the statistics that
    this pass ran with are in place by then.
    """
    with contextlib.ExitStack() as disabled:
        if torch.is_grad_enabled():
            with contextlib.suppress(RuntimeError):  # the caller has hooks of its own in place
                disabled.enter_context(
                    torch.autograd.graph.disable_saved_tensors_hooks(
                        "it uses gradient checkpointing, which gradients at test time do not go "
                        "through; switch it off in the network"
                    )
                )
        yield
