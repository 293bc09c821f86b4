"""The oracle as a backend: it serves every tensor, and follows the interface of the others."""

import pytest
import torch

from torch_dropblock.backends import reference
from torch_dropblock.core import reference as oracle
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.seeds import table_of


def some_blocks(share_channels):
    blocks = Blocks.of((4, 6), (9, 11), (3, 2), share_channels)
    return blocks, table_of((9, 11), (3, 2), blocks.streams.length, 0.7, "exact")


@pytest.mark.parametrize("share_channels", [False, True])
def test_it_writes_what_the_oracle_makes(share_channels):
    blocks, table = some_blocks(share_channels)
    x = torch.randn(4, 6, 9, 11)
    kept = reference.kept(5, blocks, table)
    assert kept.shape == (4, 1 if share_channels else 6, 9, 11)
    assert 0.5 < kept.double().mean() < 0.9
    output = torch.empty_like(x)
    assert reference.drop(x, output, 5, blocks, table) is None, "the scale is counted again each time"
    assert torch.equal(output, oracle.drop_block(x, kept.expand_as(x)))
    reference.drop(x, x, torch.tensor(5), blocks, table)
    assert torch.equal(x, output), "in place, with a key that is a tensor"


def test_a_mask_is_a_function_of_its_key():
    blocks, table = some_blocks(False)
    state = torch.get_rng_state()
    assert torch.equal(reference.kept(5, blocks, table), reference.kept(torch.tensor(5), blocks, table))
    assert not torch.equal(reference.kept(5, blocks, table), reference.kept(6, blocks, table))
    assert torch.equal(state, torch.get_rng_state())


def test_it_serves_every_tensor():
    blocks, _ = some_blocks(False)
    for x in (torch.ones(4, 6, 9, 11).half(), torch.ones(4, 6, 11, 9).transpose(2, 3)):
        assert reference.why_not(x, blocks) is None
