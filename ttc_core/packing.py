"""States kept in an eighth of their memory: how far each number is from the source's, in a byte.

What a snapshot or a remembered condition holds need not be exact: it is where adaptation begins
again. Numbers that lie beside one another share a scale, so that an error is at most 0.4 % of the
largest way among BLOCK of them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttc_core.flat import NamedTensors

BLOCK = 64
LEVELS = 127
# No scale is larger: what is beyond is no adaptation.
MOST = 1e6
Section = Mapping[str, Any]
CODES, SCALES = "codes", "scales"


def pack(tensor: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes (int8, of the tensor's shape) and scales (float32, one for BLOCK numbers) of how far
    its numbers are from those of `like`; None: from 0."""
    way = tensor.detach() if like is None else tensor.detach() - like
    blocks = _blocks(way.float())
    scales = blocks.abs().amax(dim=1) / LEVELS
    codes = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
    return codes.to(torch.int8).flatten()[: way.numel()].reshape(way.shape), scales


def packed_none(like: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales, as `pack` has them, of no tensors like this: (0, …) each."""
    blocks = -(-like.numel() // BLOCK)
    return (
        like.new_zeros((0, *like.shape), dtype=torch.int8),
        like.new_zeros((0, blocks), dtype=torch.float32),
    )


def unpack(codes: Tensor, scales: Tensor, like: Tensor | None = None) -> Tensor:
    """The numbers, about, of codes and scales that `pack` gave.

    Raises:
        ValueError: the scales are not as many as the codes need.
    """
    blocks = _blocks(codes.float())
    if scales.shape != blocks.shape[:1]:
        raise ValueError(f"{tuple(scales.shape)} scales for {codes.numel()} numbers")
    way = (blocks * scales[:, None]).flatten()[: codes.numel()].reshape(codes.shape)
    return way if like is None else like + way.to(like.dtype)


def pack_section(section: Section, like: Section) -> Section:
    """A section of a state: scales, shifts and moments packed, all else as it is."""
    if not isinstance(section, NamedTensors):
        return section
    source = like.flat if isinstance(like, NamedTensors) and like.layout == section.layout else None
    codes, scales = pack(section.flat, source)
    return {CODES: codes, SCALES: scales, **section.others}


def unpack_section(packed: Section, like: Section) -> Section:
    """About the section that `pack_section` was given.

    Raises:
        ValueError: it is of another network.
    """
    if CODES not in packed:
        # Whoever takes it up may go on to change it in place.
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in packed.items()}
    codes, scales = packed[CODES], packed.get(SCALES)
    sound = (
        isinstance(like, NamedTensors)
        and isinstance(codes, Tensor)
        and isinstance(scales, Tensor)
        and codes.dtype == torch.int8
        and codes.shape == like.flat.shape
        and bool((scales.abs() <= MOST).all())
    )
    if not sound:
        raise ValueError("a snapshot is of another network")
    assert isinstance(like, NamedTensors)
    assert isinstance(scales, Tensor)
    others = {name: value for name, value in packed.items() if name not in (CODES, SCALES)}
    return NamedTensors(like.layout, unpack(codes, scales, like.flat), **others)


def _blocks(numbers: Tensor) -> Tensor:
    """(B, BLOCK) of all numbers, filled up with 0."""
    flat = numbers.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
