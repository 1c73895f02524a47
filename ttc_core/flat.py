"""Many small tensors kept as one: the scales and shifts of a network, the moments of its layers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which numbers of a flat tensor belong to which name.

    Attributes:
        shapes: of each name's tensor, in the order in which they lie behind one another.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        """The layout of these tensors."""
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    @cached_property
    def _sizes(self) -> list[int]:
        return [prod(shape) for shape in self.shapes.values()]

    def flattened(self, tensors: Mapping[str, Any]) -> Tensor:
        """(P,) a copy of these tensors, one behind the other.

        Raises:
            KeyError: one is missing. ValueError: one has another shape.
        """
        if isinstance(tensors, NamedTensors) and tensors.layout == self:
            return tensors.flat.clone()
        for name, shape in self.shapes.items():
            if tensors[name].shape != shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {shape}")
        parts = [tensors[name].flatten() for name in self.shapes]
        return torch.cat(parts) if parts else torch.zeros(0)

    def views(self, flat: Tensor, constants: int = 0) -> dict[str, Tensor]:
        """Each name's part of a flat tensor (…, P), in its shape, on the same memory.

        Args:
            constants: how many of the names, the first ones, no gradient goes to.
        """
        parts = list(torch.split(flat, self._sizes, dim=-1))
        parts[:constants] = [part.detach() for part in parts[:constants]]
        return {
            name: part if len(shape) == 1 else part.reshape(*part.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


class NamedTensors(Mapping[str, Any]):
    """A flat tensor, its parts by name, and what else belongs to them.

    Args:
        flat: (P,), all numbers of the layout; the parts are views of it.
        constants: how many of the names, the first ones, no gradient goes to.
        others: numbers and texts by name.
    """

    def __init__(self, layout: Layout, flat: Tensor, *, constants: int = 0, **others: Any) -> None:
        self.layout, self.flat, self.constants, self.others = layout, flat, constants, others

    @cached_property
    def _entries(self) -> dict[str, Any]:
        return {**self.layout.views(self.flat, self.constants), **self.others}

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.layout.shapes
        yield from self.others

    def __len__(self) -> int:
        return len(self.layout.shapes) + len(self.others)


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """(S, …) by name, of S mappings that have the same names and shapes."""
    named = [each for each in rows if isinstance(each, NamedTensors)]
    if len(named) == len(rows):
        # Hundreds of streams with dozens of layers each: one call in place of all theirs.
        flats = torch.stack([each.flat for each in named])
        return named[0].layout.views(flats, named[0].constants)
    return {name: torch.stack([each[name] for each in rows]) for name in rows[0]}


def tensor_bytes(tensor: Tensor) -> bytes:
    """The numbers of a tensor as they lie in memory; numpy has no bfloat16."""
    if tensor.numel() == 0:  # torch sees no bytes in some of these
        return b""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
