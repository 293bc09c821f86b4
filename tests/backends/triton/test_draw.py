"""Drawing on a GPU: the masks against the oracle, random numbers, statistics, machine code."""

import itertools
import math

import pytest
import torch

from helpers.gpu_path import (
    DEVICE,
    HAS_GPU,
    INTERPRETED,
    MARKS,
    compiles,
    interpret,
    launch,
    oracle_kept,
    rng_seed,
    runs,
    some_blocks,
)
from torch_dropblock import keep_rate_map, seed_probability
from torch_dropblock.backends.triton.plan import stream_length
from torch_dropblock.core import geometry
from torch_dropblock.core.seeds import Blocks

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
triton_draw = pytest.importorskip("torch_dropblock.backends.triton.draw")
pytestmark = MARKS


@pytest.mark.skipif(INTERPRETED, reason="this is the process in which the others run")
def test_in_the_interpreter():
    interpret(__file__)


# --- the oracle on the seeds that were drawn ---------------------------------------------------------------------

# ragged, planes smaller than a word, of many words, block = map, block 1, block larger than a word, long rows
GEOMETRY = [
    ((8, 16), (28, 28), (7, 7), 0.9),
    ((4, 6), (9, 11), (3, 4), 0.5),
    ((4, 6), (7, 7), (7, 7), 0.5),
    ((3, 5), (6, 8, 7), (3, 3, 3), 0.8),
    ((2, 3), (9, 10, 11), (9, 2, 10), 0.6),
    ((64,), (100,), (9,), 0.9),
    ((3, 7), (1000,), (200,), 0.8),
    ((2, 3), (40, 70), (20, 41), 0.7),
    ((2, 3), (5, 5), (1, 1), 0.1),
    ((2, 3), (5, 5), (3, 3), 0.0),
    ((2, 3), (31, 33), (3, 3), 1 - 1e-9),
    ((2, 3), (31, 33), (3, 3), 1e-6),
    ((2, 65), (1, 1), (1, 1), 0.5),
    ((1, 1), (200, 300), (7, 7), 0.9),
    ((1, 2), (64, 64), (64, 1), 0.9),
    ((1, 1), (1, 2), (1, 1), 0.5),
    ((2, 3, 4), (6, 6), (2, 3), 0.8),
]


@runs
@pytest.mark.parametrize(("lead", "size", "block", "keep_prob"), GEOMETRY)
def test_the_mask_is_that_of_the_oracle_for_the_seeds_drawn(lead, size, block, keep_prob):
    for shared in ((), (len(lead) - 1,)):
        mask = launch.draw(rng_seed(), some_blocks(lead, size, block, keep_prob, shared), corners=True)
        kept = oracle_kept(mask)
        assert torch.equal(mask.dense().cpu(), ~kept)
        assert mask.scale.item() == kept.numel() / max(kept.sum().item(), 1)


@runs
def test_the_mask_is_a_function_of_the_rng_seed():
    blocks = some_blocks()
    one, two = rng_seed(), rng_seed()
    assert torch.equal(launch.draw(one, blocks).words, launch.draw(one.clone(), blocks).words)
    assert not torch.equal(launch.draw(one, blocks).words, launch.draw(two, blocks).words)
    for bit in (0, 31, 32, 63):
        other = one ^ torch.tensor(-(2**63) if bit == 63 else 1 << bit, device=DEVICE)
        assert not torch.equal(launch.draw(one, blocks).words, launch.draw(other, blocks).words)


# --- random numbers ----------------------------------------------------------------------------------------------

if INTERPRETED or HAS_GPU:

    @triton.jit
    def _store_exponentials(words, output, LANES: tl.constexpr):
        lane = tl.arange(0, LANES)
        tl.store(output + lane, triton_draw._exponential(tl.load(words + lane).to(tl.uint64, bitcast=True)))


@runs
def test_exponentials_are_precise_at_both_ends():
    numbers = [0, 1, 2, 1000, 2**20, 2**44, 2**55, 2**56 - 1, 2**56, 2**60, 2**63, 3 * 2**62 + 12345]
    numbers += [2**64 - 1 - n for n in numbers]
    numbers += [0] * (32 - len(numbers))
    signed = torch.tensor([n - 2**64 if n >> 63 else n for n in numbers], device=DEVICE)
    drawn = torch.empty(32, dtype=torch.float64, device=DEVICE)
    _store_exponentials[(1,)](signed, drawn, 32)
    for number, got in zip(numbers, drawn.tolist(), strict=True):
        # half is added to numbers that a float64 holds only in part: in integers it is exact
        low, high = 2 * number + 1, 2**65 - 2 * number - 1
        exact = -math.log1p(-low / 2**65) if low < high else 65 * math.log(2) - math.log(high)
        if low >= high and high > 2**60:
            exact = -math.log(high / 2**65)
        assert got == pytest.approx(exact, rel=2**-44)


@runs
@pytest.mark.parametrize("keep_prob", [0.0, 0.3, 0.9, 1.0])
def test_a_gap_on_the_device_draws_what_gamma_on_the_host_draws(keep_prob):
    seed, blocks = rng_seed(), some_blocks((2, 3), (13, 11), (3, 2), keep_prob)
    value = torch.tensor([keep_prob], dtype=torch.float64, device=DEVICE)
    gap = launch.mean_gap(value, blocks.size, blocks.block, "exact")
    mask = launch.draw(seed, some_blocks((2, 3), (13, 11), (3, 2), 0.5), gap)
    assert torch.equal(mask.words, launch.draw(seed, blocks).words)
    assert mask.scale.item() == launch.draw(seed, blocks).scale.item()


# --- statistics: those of tests/test_statistics.py ---------------------------------------------------------------

PLANES = 4096
# ordinary, even, rectangular, block 1, block = map, one smaller, a row, 1-d and 3-d
CASES = [
    ((28, 28), (7, 7)),
    ((14, 14), (6, 6)),
    ((7, 7), (7, 7)),
    ((40, 10), (7, 7)),
    ((12, 12), (1, 1)),
    ((17, 23), (3, 8)),
    ((8, 8), (7, 7)),
    ((1, 1), (1, 1)),
    ((31, 5), (1, 5)),
    ((100,), (9,)),
    ((33,), (33,)),
    ((6, 8, 7), (3, 3, 3)),
]


def dropped_planes(size, block, keep_prob, rate="exact", planes=PLANES):
    blocks = some_blocks((planes,), size, block, keep_prob, rate=rate)
    return launch.draw(rng_seed(), blocks).dense().cpu().double()


@runs
@pytest.mark.parametrize("keep_prob", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("size", "block"), CASES)
def test_the_share_that_was_asked_for_is_dropped_at_every_position(size, block, keep_prob, z_score):
    dropped = dropped_planes(size, block, keep_prob)
    assert abs(z_score(dropped.flatten(1).mean(-1), 1 - keep_prob)) < 5
    expected = 1 - keep_rate_map(size, block, seed_probability(size, block, keep_prob))
    error = (expected * (1 - expected) / PLANES).sqrt()
    assert ((dropped.mean(0) - expected).abs() <= 5 * error + 1e-12).all()


@runs
@pytest.mark.parametrize("keep_prob", [0.5, 0.9])
@pytest.mark.parametrize(("size", "block"), CASES[:6])
def test_paper(size, block, keep_prob, z_score):
    gamma = seed_probability(size, block, keep_prob, "paper")
    expected = 1 - geometry.expected_keep_rate(size, block, gamma)
    assert abs(z_score(dropped_planes(size, block, keep_prob, "paper").flatten(1).mean(-1), expected)) < 5


@runs
@pytest.mark.parametrize("lag", [1, 2, 64])
@pytest.mark.parametrize(("size", "block"), [((28, 28), (7, 7)), ((7, 7), (7, 7)), ((12, 12), (1, 1)), ((100,), (9,))])
def test_planes_are_independent(size, block, lag, z_score):
    off = dropped_planes(size, block, 0.9)
    off -= 1 - keep_rate_map(size, block, seed_probability(size, block, 0.9))
    assert abs(z_score((off * off.roll(lag, 0)).flatten(1).mean(-1), 0.0)) < 5


@runs
@pytest.mark.parametrize("gamma", [0.0005, 0.01, 0.1, 0.6, 0.95])
def test_positions_are_independent_and_none_is_favoured(gamma):
    """Seeds themselves, within streams and across their ends."""
    blocks = Blocks((4000,), (259,), (1,), gamma)
    hit = launch.draw(rng_seed(), blocks).dense().cpu().double()
    variance = gamma * (1 - gamma)
    assert ((hit.mean(0) - gamma).abs() < 5 * math.sqrt(variance / 4000)).all()
    assert abs(hit.mean().item() - gamma) < 5 * math.sqrt(variance / hit.numel())
    flat = hit.flatten() - gamma
    for lag in (1, 2, stream_length(blocks.size, blocks.block)):
        pairs = (flat[lag:] * flat[:-lag]).mean().item()
        assert abs(pairs) < 5 * variance / math.sqrt(len(flat) - lag)


@runs
def test_a_small_gamma_is_not_lost():
    """A million positions with γ = 1e-5: their number has the mean and the variance of a Poisson one."""
    blocks = Blocks((1000,), (1000,), (1,), 1e-5)
    counts = [launch.draw(rng_seed(), blocks).dense().sum().item() for _ in range(20)]
    assert abs(sum(counts) - 200) < 5 * math.sqrt(200)
    few = Blocks((1000,), (1000,), (1,), 1e-12)
    assert not any(launch.draw(rng_seed(), few).dense().any() for _ in range(5))


@runs
@pytest.mark.parametrize("size", [(400, 500), (1024, 64)])
def test_large_planes_are_dropped_evenly(size, z_score):
    dropped = dropped_planes(size, (7, 7), 0.9, planes=6)
    expected = 1 - keep_rate_map(size, (7, 7), seed_probability(size, 7, 0.9))
    tiles = (dropped - expected).unfold(1, 32, 32).unfold(2, 32, 32).mean((-1, -2))
    assert abs(z_score(tiles, 0.0)) < 5


# --- the compiler, without a GPU ---------------------------------------------------------------------------------


def variants():
    """The kernel with the types and constants of its calls."""
    how = launch.Launch()
    for gap_in_memory, corners, count, one_chunk in itertools.product([False, True], repeat=4):
        known, unit = "*fp64" if gap_in_memory else "*i64", "i32" if one_chunk else "i64"
        types = ["*i64", "*i64", "*i64", "*i64", "*fp64", "*i64", known, "fp32", "fp32", "i32", unit, *["i32"] * 3]
        types += [unit, *["i32"] * 4, *["i64"] * 3, *["i32"] * 3, *["i64"] * 5, *["i32"] * 3]
        constants = {"GAP_IN_MEMORY": gap_in_memory, "NOTE_CORNERS": corners, "COUNT": count, "ONE_CHUNK": one_chunk}
        constants |= {"UNIT": tl.int32 if one_chunk else tl.int64, "STREAMS": how.streams, "DRAWS": how.draws}
        yield triton_draw.draw, types, constants | {"CHUNK": how.words}, {"num_warps": how.streams}, ()


test_every_kernel_compiles = compiles(variants)
