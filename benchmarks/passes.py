"""Which passes of the network a method makes: counted, and to be made again without it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ttc_core.model import SourceModel
from ttc_core.normalization import source_look
from ttc_core.running import Output


@dataclass(frozen=True)
class Pass:
    """A forward pass.

    Attributes:
        rows: of its batch.
        keeps_graph: whether a gradient may follow.
        by_source: whether scales, shifts and statistics were all the source's.
        both_views: whether the second half of the rows mirrors the first.
    """

    rows: int
    keeps_graph: bool = False
    by_source: bool = False
    both_views: bool = False

    @property
    def images(self) -> int:
        """That it answers."""
        return self.rows // 2 if self.both_views else self.rows


@dataclass
class Passes:
    """What was made within the block of `recorded`.

    Attributes:
        forward: the forward passes, in their order.
        backward: how many there were.
    """

    forward: list[Pass] = field(default_factory=list)
    backward: int = 0

    @property
    def rows(self) -> int:
        """Of all forward passes."""
        return sum(each.rows for each in self.forward)


@contextlib.contextmanager
def recorded() -> Iterator[Passes]:
    """Note what passes are made until the block ends."""
    made = Passes()
    run, grad = SourceModel.run, torch.autograd.grad

    def noting_run(self: SourceModel, inputs: Tensor, **options: Any) -> Output:
        by_source = options.get("look", source_look) is source_look and not options.get("affine")
        made.forward.append(
            Pass(len(inputs), torch.is_grad_enabled(), by_source, has_both_views(inputs))
        )
        return run(self, inputs, **options)

    def noting_grad(*arguments: Any, **options: Any) -> Any:
        made.backward += 1
        return grad(*arguments, **options)

    SourceModel.run, torch.autograd.grad = noting_run, noting_grad
    try:
        yield made
    finally:
        SourceModel.run, torch.autograd.grad = run, grad


def has_both_views(inputs: Tensor) -> bool:
    """Whether the second half of some rows (N, 3, H, W) mirrors the first."""
    first, second = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
    return len(first) > 0 and torch.equal(first.flip(3), second)
