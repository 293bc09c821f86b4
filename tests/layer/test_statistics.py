"""The layer drops what theory says: z tests over independent planes, at many sizes, blocks and probabilities.

Every bound is five standard errors, which right code passes in all but one of 1.7 million trials; the seeds are
fixed, so a pass stays a pass.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from torch_dropblock import (
    drop_block1d,
    drop_block2d,
    drop_block3d,
    expected_keep_rate,
    keep_rate_map,
    seed_probability,
)

DROP_BLOCK = {1: drop_block1d, 2: drop_block2d, 3: drop_block3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
PLANES = (64, 64)  # samples and channels: 4,096 independent planes

# size and block: ordinary, even, rectangular, block 1, block as large as the map, larger, one smaller, a row, a column
CASES = [
    ((28, 28), 7),
    ((14, 14), 7),
    ((7, 7), 7),
    ((40, 10), 7),
    ((56, 56), 7),
    ((28, 28), 6),
    ((28, 28), 1),
    ((17, 23), (3, 8)),
    ((8, 8), 7),
    ((4, 4), 7),
    ((1, 1), 1),
    ((2, 2), 2),
    ((20, 30), (20, 3)),
    ((31, 5), (1, 5)),
    ((13, 13), 12),
    ((100,), 9),
    ((33,), 33),
    ((50,), 2),
    ((6, 8, 7), 3),
    ((4, 9, 9), (2, 5, 1)),
]
KEEP_PROBS = [0.1, 0.5, 0.9, 0.99]


def drop_ones(size, block, **options):
    return DROP_BLOCK[len(size)](torch.ones(*PLANES, *size), block, **options)


def dropped_share_of_planes(y, dims):
    return (y == 0).double().flatten(-dims).mean(-1)


@pytest.mark.parametrize("keep_prob", KEEP_PROBS)
@pytest.mark.parametrize(("size", "block"), CASES)
def test_exact_drops_the_share_that_was_asked_for_and_each_position_as_often_as_theory_says(
    size, block, keep_prob, z_score
):
    y = drop_ones(size, block, keep_prob=keep_prob)
    assert abs(z_score(dropped_share_of_planes(y, len(size)), 1 - keep_prob)) < 5
    if keep_prob in (0.5, 0.9):  # at the others some positions are kept, or dropped, too rarely for a z test
        kept = (y != 0).double().mean((0, 1))
        expected = keep_rate_map(size, block, seed_probability(size, block, keep_prob))
        error = (expected * (1 - expected) / math.prod(PLANES)).sqrt()
        assert ((kept - expected).abs() <= 5 * error).all()


@pytest.mark.parametrize("keep_prob", [0.1, 0.9])
@pytest.mark.parametrize(("size", "block"), CASES)
def test_paper_drops_what_theory_says_of_equation_1(size, block, keep_prob, z_score):
    shares = dropped_share_of_planes(drop_ones(size, block, keep_prob=keep_prob, rate="paper"), len(size))
    expected = 1 - expected_keep_rate(size, block, seed_probability(size, block, keep_prob, "paper"))
    assert abs(z_score(shares, expected)) < 5


@pytest.mark.parametrize("keep_prob", [0.3, 0.9])
@pytest.mark.parametrize(("size", "block"), CASES)
def test_every_zero_belongs_to_a_whole_block_inside_the_map(size, block, keep_prob):
    y = DROP_BLOCK[len(size)](torch.ones(8, 8, *size), block, keep_prob=keep_prob)
    block = (block,) * len(size) if isinstance(block, int) else block
    block = tuple(min(s, b) for s, b in zip(size, block, strict=True))
    pool, kept = MAX_POOL[len(size)], (y != 0).float()
    whole = 1 - pool(kept, block, stride=1)  # corners of the places where a whole block is zero
    margins = [b - 1 for b in reversed(block) for _ in range(2)]
    assert torch.equal(pool(F.pad(whole, margins), block, stride=1), 1 - kept)


@pytest.mark.parametrize(("size", "block"), [((28, 28), 7), ((7, 7), 7), ((28, 28), 1), ((100,), 9)])
@pytest.mark.parametrize(("axis", "lag"), [(0, 1), (0, 7), (1, 1), (1, 2)])
def test_planes_are_independent(size, block, axis, lag, z_score):
    """Across samples and across channels: of two planes, no more units are dropped in both than by chance."""
    expected = keep_rate_map(size, block, seed_probability(size, block, 0.9))
    off = (drop_ones(size, block, keep_prob=0.9) != 0).double() - expected
    together = (off * off.roll(lag, axis)).flatten(2).mean(-1)
    assert abs(z_score(together, 0.0)) < 5


def test_calls_are_independent(z_score):
    expected = keep_rate_map((28, 28), 7, seed_probability((28, 28), 7, 0.9))
    first, second = ((drop_ones((28, 28), 7) != 0).double() - expected for _ in range(2))
    assert abs(z_score((first * second).flatten(2).mean(-1), 0.0)) < 5


def test_shared_masks_drop_the_share_that_was_asked_for(z_score):
    y = drop_block2d(torch.ones(4096, 3, 14, 14), 7, keep_prob=0.9, share_channels=True)
    assert abs(z_score(dropped_share_of_planes(y[:, 0], 2), 0.1)) < 5


def test_early_planes_are_not_favoured(z_score):
    y = drop_block2d(torch.ones(40, 512, 28, 28, dtype=torch.bfloat16), 7, keep_prob=0.9)
    shares = dropped_share_of_planes(y, 2).flatten()
    for part in shares.chunk(8):
        assert abs(z_score(part, 0.1)) < 5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_layout_do_not_change_the_share(dtype, memory_format, z_score):
    x = torch.ones(*PLANES, 14, 14, dtype=dtype).to(memory_format=memory_format)
    assert abs(z_score(dropped_share_of_planes(drop_block2d(x, 5, keep_prob=0.8), 2), 0.2)) < 5


@pytest.mark.parametrize("keep_prob", KEEP_PROBS)
def test_the_mean_is_kept(keep_prob, z_score):
    x = torch.randn(256, 64, 14, 14) + 3
    y = drop_block2d(x, 7, keep_prob=keep_prob)
    planes = (y - x).flatten(2).mean(-1)
    assert abs(z_score(planes, 0.0)) < 5


@pytest.mark.parametrize(("block", "keep_prob"), [(1, 0.7), (14, 0.7)])
def test_block_1_is_dropout_and_a_block_as_large_as_the_map_drops_planes(block, keep_prob):
    y = drop_block2d(torch.ones(64, 64, 14, 14), block, keep_prob=keep_prob) != 0
    if block == 1:  # neighbours are independent
        pairs = (y[..., 1:].double() - keep_prob) * (y[..., :-1].double() - keep_prob)
        assert abs(pairs.mean().item()) < 5 * keep_prob * (1 - keep_prob) / math.sqrt(pairs.numel())
    else:
        assert torch.equal(y, y[..., :1, :1].expand_as(y))
