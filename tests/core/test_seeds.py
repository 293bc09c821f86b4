"""Which seeds are drawn: the oracle's, each position with probability γ, and none with another in mind."""

import math
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_dropblock.core import geometry, reference, seeds
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.keys import draw_key_number, signed


def table_for(gamma, blocks):
    return table(gamma, blocks.streams.length)


@lru_cache
def table(gamma, length):
    lam = seeds.MOST_LAM if gamma == 1.0 else -math.log1p(-gamma)
    return torch.tensor(seeds.poisson_table(lam, length), dtype=torch.float64)


def one_dimension(positions, block=1):
    """One plane of so many positions; longer blocks make longer streams."""
    return Blocks((1,), (positions + block - 1,), (block,))


def hits(key, blocks, gamma):
    """Which positions are seeds, plane by plane."""
    drawn = seeds.draw_seeds(key, blocks, table_for(gamma, blocks))
    return torch.zeros(blocks.positions, dtype=torch.float64).index_fill_(0, drawn, 1).view(blocks.planes, -1)


# --- the table ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 32, 120, 5880, 65535])
@pytest.mark.parametrize("lam", [0.0, 1e-300, 1e-30, 1e-7, 1e-3, 0.1, 1.0, 32.0, 40.0, 64.0, math.inf])
def test_a_table_is_the_poisson_distribution(lam, length):
    numbers, *probabilities = seeds.poisson_table(lam, length)
    assert len(probabilities) == seeds.TABLE - 1
    assert probabilities == sorted(probabilities)
    assert probabilities[-1] == 1.0
    assert probabilities[0] >= 0.0
    assert numbers == int(numbers) >= 1
    mean = seeds.rounded(lam) * length / numbers
    assert mean <= seeds.MOST_EXPECTED
    terms = [math.exp(-mean)]
    for k, probability in enumerate(probabilities):
        assert abs(probability - math.fsum(terms)) < 1e-12
        terms.append(terms[-1] * mean / (k + 1))
    assert sum(1.0 - p for p in probabilities) * numbers == pytest.approx(
        seeds.rounded(lam) * length, rel=1e-11, abs=1e-12
    )


def test_lambda_is_rounded_to_a_float32():
    for lam in (0.0, 1e-300, 1e-40, 0.1, 1 / 3, 39.9):
        assert seeds.rounded(lam) == torch.tensor(lam, dtype=torch.float32).item()
    assert seeds.rounded(1e300) == seeds.MOST_LAM == 40.0


@pytest.mark.parametrize("rate", ["exact", "paper"])
@pytest.mark.parametrize("keep_prob", [0.3, 0.9])
def test_the_table_of_a_keep_prob(keep_prob, rate):
    gamma = geometry.gamma((28, 28), (7, 7), keep_prob, rate)
    with torch.device("meta"), torch.inference_mode(), FakeTensorMode():
        seeds.table_of.cache_clear()
        table = seeds.table_of((28, 28), (7, 7), 484, keep_prob, rate)
    assert type(table) is torch.Tensor
    assert not table.is_inference()
    assert table.tolist() == seeds.poisson_table(-math.log1p(-gamma), 484)


def test_a_table_that_is_made_under_a_transform_is_plain():
    """It is kept for calls that are under none."""
    tables = []

    def function(x):
        tables.append(seeds.table_of((28, 28), (7, 7), 484, 0.77, "exact"))
        return x

    seeds.table_of.cache_clear()
    torch.func.grad(function)(torch.tensor(1.0))
    assert tables[0].data_ptr(), "it has memory of its own"


def test_there_is_no_table_where_everything_is_dropped():
    for keep_prob, none in ((0.0, True), (1e-300, True), (1e-9, False)):
        assert (seeds.table_of((9, 9), (3, 3), 100, keep_prob, "exact") is None) == none
    assert seeds.table_of((9, 9), (3, 3), 100, 0.0, "paper") is not None, "the paper's γ keeps some"
    assert seeds.table_of((9, 9), (9, 9), 100, 0.0, "paper") is None


# --- the seeds of a key ------------------------------------------------------------------------------------------


@st.composite
def cases(draw):
    dims = draw(st.integers(1, 3))
    size = tuple(draw(st.integers(1, (400, 20, 7)[dims - 1])) for _ in range(dims))
    block = tuple(draw(st.integers(1, s)) for s in size)
    blocks = Blocks((draw(st.integers(1, 30)),), size, block)
    return blocks, draw(st.sampled_from([0.0, 1e-9, 0.01, 0.1, 0.6, 1.0])), draw(st.integers(-(2**63), 2**63 - 1))


@given(case=cases())
@settings(max_examples=50)
def test_seeds_are_those_of_the_oracle(case):
    blocks, gamma, key = case
    table = table_for(gamma, blocks)
    drawn = seeds.draw_seeds(key, blocks, table)
    assert drawn.dtype == torch.int64
    dense = torch.zeros(blocks.positions, dtype=torch.bool).index_fill_(0, drawn, True)
    assert torch.equal(dense, reference.draw_seeds(key, blocks, table).flatten())
    assert (drawn.div(blocks.streams.group, rounding_mode="floor").diff() >= 0).all(), "group by group"
    assert torch.equal(seeds.draw_seeds(torch.tensor(key), blocks, table), drawn)


@given(case=cases())
@settings(max_examples=50)
def test_other_devices_draw_the_same_seeds_and_a_surplus(case):
    blocks, gamma, key = case
    table, count = table_for(gamma, blocks), blocks.streams.count
    drawn = seeds._at_most(torch.tensor(key), blocks, table, 0, count)
    assert len(drawn) == count * (table[1:] < 1).sum() * table[0]
    assert torch.equal(drawn[drawn < blocks.positions], seeds.draw_seeds(key, blocks, table))
    assert (drawn <= blocks.positions).all()


def test_drawing_in_parts_changes_nothing(monkeypatch):
    for blocks in (one_dimension(1000), Blocks((100,), (5, 5), (2, 2)), Blocks((3,), (40, 40), (1, 1))):
        whole = [hits(key, blocks, 0.4) for key in range(5)]
        for at_once in (1, 2, 3):
            monkeypatch.setattr(seeds, "STREAMS_AT_ONCE", at_once)
            assert all(torch.equal(hits(key, blocks, 0.4), expected) for key, expected in enumerate(whole))
        monkeypatch.undo()


def test_the_number_of_threads_does_not_change_the_seeds():
    key, threads = draw_key_number(None), torch.get_num_threads()
    blocks = one_dimension(2_000_000)
    try:
        drawn = [torch.set_num_threads(n) or seeds.draw_seeds(key, blocks, table_for(0.1, blocks)) for n in (1, 2, 5)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("gamma", [0.0, 5e-324, 1e-300, 1e-46])
def test_a_seed_probability_of_next_to_nothing_draws_none(gamma):
    blocks = one_dimension(10**9, 10**5)
    assert len(seeds.draw_seeds(draw_key_number(None), blocks, table_for(gamma, blocks))) == 0


@pytest.mark.parametrize("lead", [(0,), (2, 0)])
def test_no_positions_have_no_seeds(lead):
    blocks = Blocks(lead, (5, 5), (2, 2))
    drawn = seeds.draw_seeds(3, blocks, torch.ones(seeds.TABLE, dtype=torch.float64))
    assert (drawn.shape, drawn.dtype) == ((0,), torch.int64)


# --- their distribution ------------------------------------------------------------------------------------------

# small planes, of which a stream has many; planes of one stream; planes of several streams; and such with a short last
SHAPES = [Blocks((n,), size, block) for n, size, block in [
    (30_000, (2, 3), (1, 1)),
    (30_000, (5, 5), (4, 3)),
    (6000, (9, 12), (1, 1)),
    (2000, (33, 30), (5, 3)),
    (4000, (257,), (1,)),
    (1000, (9, 8, 10), (1, 2, 1)),
]]  # fmt: skip


@pytest.mark.parametrize("gamma", [0.0005, 0.01, 0.1, 0.6, 0.95])
@pytest.mark.parametrize("blocks", SHAPES, ids=lambda blocks: f"{blocks.size}")
def test_each_position_is_a_seed_with_probability_gamma(blocks, gamma):
    hit = hits(draw_key_number(None), blocks, gamma)
    planes, positions = hit.shape
    variance = gamma * (1 - gamma)
    # counts that are expected to be small have longer tails than normal ones
    error = 5 * math.sqrt(variance / planes) + 5 / planes
    assert ((hit.mean(0) - gamma).abs() < error).all(), "no position is favoured"
    assert abs(hit.mean().item() - gamma) < 5 * math.sqrt(variance / hit.numel())
    off = (hit - gamma).flatten()
    length = blocks.streams.length
    for lag in {1, 2, positions, length, length - 1}:
        if lag < len(off):
            n = len(off) - lag
            together = (off[lag:] @ off[:-lag]).item() / n
            assert abs(together) < 5 * variance / math.sqrt(n) + 10 / n, f"{lag} positions apart"
    # how many seeds a plane has is binomial: seeds do not come in groups
    many = hit.sum(1)
    fourth = variance * positions * (1 + 3 * variance * positions)
    assert abs(((many - gamma * positions) ** 2).mean().item() - variance * positions) < 6 * math.sqrt(fourth / planes)


def test_both_sides_of_a_border_between_streams_are_independent(z_score):
    blocks = Blocks((20_000,), (257,), (1,))
    length = blocks.streams.length
    assert blocks.streams.per_group == 3
    off = hits(draw_key_number(None), blocks, 0.3) - 0.3
    for border in (length, 2 * length):
        assert abs(z_score(off[:, border - 1] * off[:, border], 0.0)) < 5
    assert abs(z_score(off[1:, 0] * off[:-1, -1], 0.0)) < 5, "planes"


@pytest.mark.parametrize("positions", [2 * 10**8, 2**33 + 12345])
def test_early_positions_of_large_tensors_are_not_favoured(positions):
    gamma, bins = 1e6 / positions, 50
    blocks = one_dimension(positions, 1000)
    drawn = seeds.draw_seeds(draw_key_number(None), blocks, table_for(gamma, blocks))
    assert drawn.min() >= 0
    assert drawn.max() < positions
    assert abs(len(drawn) - 1e6) < 5e3
    counts = torch.bincount(drawn * bins // positions, minlength=bins).double()
    expected = len(drawn) / bins
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi2 - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


# --- an adversary's keys -----------------------------------------------------------------------------------------

KEY = 0x0123456789ABCDEF
PAIRS = {
    "0 and 1": (0, 1),
    "0 and -1": (0, -1),
    "neighbours": (KEY, KEY + 1),
    "negatives": (KEY, -KEY),
    "complements": (KEY, ~KEY),
    "low halves alike": (KEY, KEY ^ 0x7FFFFFFF << 32),
    "high halves alike": (KEY, KEY ^ 0xFFFFFFFF),
    "halves exchanged": (KEY, (KEY >> 32) | (KEY & 0xFFFFFFFF) << 32),
    "a step of the streams": (KEY, KEY + 0x9E3779B97F4A7C15),
    **{f"bit {bit}": (KEY, KEY ^ 1 << bit) for bit in (0, 1, 5, 16, 30, 31, 32, 33, 47, 53, 62, 63)},
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_the_seeds_of_keys_that_are_alike_are_independent(pair, z_score):
    for blocks in (Blocks((2000,), (10, 12), (1, 1)), Blocks((20_000,), (5, 5), (4, 3))):
        one, other = (hits(signed(key), blocks, 0.1) - 0.1 for key in pair)
        assert abs(z_score(one * other, 0.0)) < 5, "at the same positions"
        assert abs(z_score(one.sum(1) * other.sum(1), 0.0)) < 5, "numbers of seeds of a plane"
        assert abs(z_score(one[1:] * other[:-1], 0.0)) < 5, "of the next plane"


def test_the_seeds_of_consecutive_calls_and_of_any_two_streams_are_independent(z_score):
    """Many keys in turn; of each the first and the last streams."""
    blocks = Blocks((4,), (16, 16), (1, 1))
    assert blocks.streams.count == 12
    calls = torch.stack([hits(draw_key_number(None), blocks, 0.1).flatten() for _ in range(1500)]) - 0.1
    consecutive = torch.stack([hits(key, blocks, 0.1).flatten() for key in range(-750, 750)]) - 0.1
    length = blocks.streams.length
    for off in (calls, consecutive):
        assert abs(z_score(off[1:] * off[:-1], 0.0)) < 5
        many = off.sum(1)
        assert abs(z_score(many[1:] * many[:-1], 0.0)) < 5
        first, second, last = off[:, :length], off[:, length : 2 * length], off[:, -length:]
        for a, b in ((first, second), (first, last), (second, last), (first[1:], last[:-1]), (last[1:], first[:-1])):
            assert abs(z_score(a * b.roll(5, 1), 0.0)) < 5
            assert abs(z_score(a.sum(1) * b.sum(1), 0.0)) < 5
    assert (off.mean(0).abs() < 5 * math.sqrt(0.09 / len(off))).all(), "the first numbers are not favoured"
