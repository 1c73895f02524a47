"""What is packed is about what it was, in an eighth of the memory."""

import pytest
import torch

from ttc_core.flat import Layout, NamedTensors
from ttc_core.packing import BLOCK, LEVELS, pack, pack_section, unpack, unpack_section


@pytest.mark.parametrize("shape", [(1,), (BLOCK,), (2, 3 * BLOCK + 5), (0,)])
@pytest.mark.parametrize("way", [1e-6, 1.0, 1e6])
def test_each_number_is_off_by_half_a_level_at_most(shape, way):
    """Of the largest way from the source among its neighbours; the source itself is exact."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(shape, generator=generator)
    moved = source + way * torch.randn(shape, generator=generator)
    codes, scales = pack(moved, source)
    found = unpack(codes, scales, source)
    assert (codes.dtype, codes.shape, found.dtype) == (torch.int8, moved.shape, source.dtype)
    most = (moved - source).abs().max().item() if moved.numel() else 0
    assert (found - moved).abs().sum() <= moved.numel() * (0.51 * most / LEVELS + 1e-6)
    assert torch.equal(unpack(*pack(source, source), source), source)


def test_a_section_keeps_its_numbers_and_its_names():
    """Tensors behind one another are packed, what else is in it stays."""
    layout = Layout({"a": (3,), "b": (2, 2)})
    source = NamedTensors(layout, torch.arange(7.0), images=0)
    section = NamedTensors(layout, torch.arange(7.0) + 1, images=5)
    packed = pack_section(section, source)
    assert sum(each.nbytes for each in packed.values() if isinstance(each, torch.Tensor)) < 28
    found = unpack_section(packed, source)
    torch.testing.assert_close(found["b"], section["b"])
    assert found["images"] == 5
    plain = {"counts": torch.arange(4)}
    found = unpack_section(pack_section(plain, {}), {})
    assert torch.equal(found["counts"], plain["counts"])
    assert found["counts"] is not plain["counts"]


def test_what_is_of_another_network_is_refused():
    """By the number of its numbers."""
    like = NamedTensors(Layout({"a": (3,)}), torch.zeros(3))
    packed = dict(pack_section(like, like))
    other = NamedTensors(Layout({"a": (4,)}), torch.zeros(4))
    with pytest.raises(ValueError, match="another network"):
        unpack_section(packed, other)
    packed["scales"] = torch.zeros(2)
    with pytest.raises(ValueError, match="scales"):
        unpack_section(packed, like)
