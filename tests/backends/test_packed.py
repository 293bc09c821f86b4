"""Words of 32 bits against the masks that they hold."""

import pytest
import torch

from torch_dropblock.backends import packed


@pytest.mark.parametrize("order", ["planes", "channels"])
@pytest.mark.parametrize("lead", [(3, 5), (2, 32), (1, 70), (7,)])
@pytest.mark.parametrize("size", [(31,), (32,), (7, 7), (4, 8), (3, 5, 7)])
def test_what_is_packed_is_unpacked(lead, size, order):
    mask = torch.rand(*lead, *size) < 0.4
    words = packed.pack(mask, len(size), order)
    assert words.dtype == torch.int32
    assert words.shape == packed.shape(lead, size, order)
    assert torch.equal(packed.unpack(words, lead, size, order), mask)


def test_a_bit_is_a_unit_of_its_plane_or_a_channel_of_its_unit():
    mask = torch.zeros(2, 40, 5, 9, dtype=torch.bool)
    mask[1, 37, 4, 2] = True
    words = packed.pack(mask, 2, "planes")
    assert words.nonzero().tolist() == [[1, 37, 1]]
    assert words[1, 37, 1] == 1 << (4 * 9 + 2 - 32)
    words = packed.pack(mask, 2, "channels")
    assert words.nonzero().tolist() == [[1, 4, 2, 1]]
    assert words[1, 4, 2, 1] == 1 << (37 - 32)


def test_a_string_runs_through_all_planes():
    mask = torch.rand(3, 5, 7, 7) < 0.4
    units = torch.zeros(768, dtype=torch.bool)
    units[: mask.numel()] = mask.flatten()
    words = packed.pack(units[None], 1, "planes").flatten()
    assert words.shape == packed.shape((3, 5), (7, 7), "string")
    assert torch.equal(packed.unpack(words, (3, 5), (7, 7), "string"), mask)
