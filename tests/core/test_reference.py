"""The oracle, against Algorithm 1 done by hand, loop by loop."""

import itertools

import pytest
import torch

from torch_dropblock.core import reference


@pytest.mark.parametrize(
    ("size", "block"), [((9,), (4,)), ((6, 7), (3, 2)), ((5, 5), (5, 5)), ((6, 6), (1, 1)), ((4, 5, 6), (2, 3, 4))]
)
def test_kept_mask_is_what_loops_over_seeds_leave(size, block):
    valid = tuple(s - b + 1 for s, b in zip(size, block, strict=True))
    seeds = reference.draw_seeds((3, 4, *valid), 0.05)
    kept = torch.ones(3, 4, *size, dtype=torch.bool)
    for n, c, *corner in seeds.nonzero().tolist():
        for step in itertools.product(*map(range, block)):
            kept[(n, c, *(i + j for i, j in zip(corner, step, strict=True)))] = False
    assert torch.equal(reference.kept_mask(seeds, block), kept)


def test_draw_seeds_is_bernoulli(z_score):
    assert abs(z_score(reference.draw_seeds((64, 64, 22, 22), 0.01), 0.01)) < 5
    assert reference.draw_seeds((2, 2, 3, 3), 1.0).all()
    assert not reference.draw_seeds((2, 2, 3, 3), 0.0).any()


def test_drop_block_normalises_by_the_count():
    kept = torch.tensor([[[[True, True], [True, False]]]])
    x = torch.tensor([[[[1.0, 2.0], [float("nan"), float("inf")]]]])
    expected = torch.tensor([[[[4 / 3, 8 / 3], [float("nan"), 0.0]]]])
    torch.testing.assert_close(reference.drop_block(x, kept), expected, equal_nan=True)


def test_all_dropped_is_zeros():
    x = torch.full((1, 1, 2, 2), float("inf"))
    assert torch.equal(reference.drop_block(x, torch.zeros(1, 1, 2, 2, dtype=torch.bool)), torch.zeros(1, 1, 2, 2))
