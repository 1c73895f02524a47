"""Which passes of the network a method makes: counted, and to be made again without it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ttc_core.model import Output, SourceModel


@dataclass
class Passes:
    """What was made within the block of `recorded`.

    Attributes:
        forward: of each forward pass its images, and whether it kept a graph.
        backward: how many there were.
    """

    forward: list[tuple[int, bool]] = field(default_factory=list)
    backward: int = 0

    @property
    def images(self) -> int:
        """Of all forward passes."""
        return sum(count for count, _ in self.forward)


@contextlib.contextmanager
def recorded() -> Iterator[Passes]:
    """Note what passes are made until the block ends."""
    made = Passes()
    run, grad = SourceModel.run, torch.autograd.grad

    def noting_run(self: SourceModel, inputs: torch.Tensor, **options: Any) -> Output:
        made.forward.append((len(inputs), torch.is_grad_enabled()))
        return run(self, inputs, **options)

    def noting_grad(*arguments: Any, **options: Any) -> Any:
        made.backward += 1
        return grad(*arguments, **options)

    SourceModel.run, torch.autograd.grad = noting_run, noting_grad
    try:
        yield made
    finally:
        SourceModel.run, torch.autograd.grad = run, grad
