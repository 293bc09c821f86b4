"""The oracle, against Algorithm 1 and the words of a key done by hand, loop by loop."""

import itertools
import math

import pytest
import torch

from torch_dropblock.core import reference
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.keys import mixed
from torch_dropblock.core.seeds import poisson_table


@pytest.mark.parametrize(
    ("size", "block"), [((9,), (4,)), ((6, 7), (3, 2)), ((5, 5), (5, 5)), ((6, 6), (1, 1)), ((4, 5, 6), (2, 3, 4))]
)
def test_kept_mask_is_what_loops_over_seeds_leave(size, block):
    valid = tuple(s - b + 1 for s, b in zip(size, block, strict=True))
    seeds = torch.rand(3, 4, *valid) < 0.05
    kept = torch.ones(3, 4, *size, dtype=torch.bool)
    for n, c, *corner in seeds.nonzero().tolist():
        for step in itertools.product(*map(range, block)):
            kept[(n, c, *(i + j for i, j in zip(corner, step, strict=True)))] = False
    assert torch.equal(reference.kept_mask(seeds, block), kept)


def table_for(gamma, blocks):
    lam = 64.0 if gamma == 1.0 else -math.log1p(-gamma)
    return torch.tensor(poisson_table(lam, blocks.streams.length), dtype=torch.float64)


def test_the_first_seed_of_a_key_by_hand():
    """A table with one number that is always 1: the second word of a stream says where its one seed is."""
    blocks = Blocks((3,), (60, 60), (5, 5))
    assert blocks.streams[:4] == (6, 1568, 2, 3136)
    table = torch.tensor([1.0, 0.0, *[1.0] * 126], dtype=torch.float64)
    phi = 0x9E3779B97F4A7C15
    for key in (0, 7, -1, 2**63 - 1):
        places = []
        for s in range(6):
            base = mixed(mixed(key) + (s + 1) * phi)
            places.append(s * 1568 + (mixed(base + phi) % 2**64 >> 17) * 1568 // 2**47)
        seeds = reference.draw_seeds(key, blocks, table)
        assert seeds.shape == (1, 3, 56, 56)
        assert seeds.flatten().nonzero().flatten().tolist() == places


def test_draw_seeds_is_bernoulli(z_score):
    blocks = Blocks((600,), (28, 28), (7, 7))
    assert abs(z_score(reference.draw_seeds(5, blocks, table_for(0.01, blocks)).double(), 0.01)) < 5
    few = Blocks((6,), (3, 3), (1, 1))
    assert reference.draw_seeds(5, few, table_for(1.0, few)).all()
    assert not reference.draw_seeds(5, few, table_for(0.0, few)).any()


def test_drop_block_normalises_by_the_count():
    kept = torch.tensor([[[[True, True], [True, False]]]])
    x = torch.tensor([[[[1.0, 2.0], [float("nan"), float("inf")]]]])
    expected = torch.tensor([[[[4 / 3, 8 / 3], [float("nan"), 0.0]]]])
    torch.testing.assert_close(reference.drop_block(x, kept), expected, equal_nan=True)


def test_all_dropped_is_zeros():
    x = torch.full((1, 1, 2, 2), float("inf"))
    assert torch.equal(reference.drop_block(x, torch.zeros(1, 1, 2, 2, dtype=torch.bool)), torch.zeros(1, 1, 2, 2))
