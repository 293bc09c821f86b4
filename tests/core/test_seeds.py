"""Which seeds are drawn."""

import math

import pytest
import torch

from torch_dropblock.core import seeds as drawing
from torch_dropblock.core.rng import draw_rng_seed
from torch_dropblock.core.seeds import Blocks

CPU = torch.device("cpu")


def rng_seed():
    return draw_rng_seed(CPU, None)


def one_dimension(positions, gamma):
    return Blocks(lead=(1,), size=(positions,), block=(1,), gamma=gamma)


@pytest.mark.parametrize("gamma", [1e-6, 0.002, 0.05, 0.5, 0.97, 1.0])
def test_seeds_are_sorted_distinct_and_inside(gamma):
    blocks = one_dimension(100_003, gamma)
    seeds = drawing.draw_seeds(rng_seed(), blocks)
    assert seeds.dtype == torch.int64
    assert (seeds.diff() > 0).all()
    if len(seeds):
        assert seeds[0] >= 0
        assert seeds[-1] < blocks.positions
    if gamma == 1.0:
        assert len(seeds) == blocks.positions


@pytest.mark.parametrize("gamma", [0.0, 1e-300, 5e-324])
def test_a_seed_probability_of_next_to_nothing_draws_none(gamma):
    assert len(drawing.draw_seeds(rng_seed(), one_dimension(10**12, gamma))) == 0


@pytest.mark.parametrize("gamma", [0.0005, 0.01, 0.1, 0.6, 0.95])
def test_each_position_is_a_seed_with_probability_gamma(gamma):
    positions, draws = 257, 4000
    counts = torch.zeros(positions, dtype=torch.float64)
    pairs = torch.zeros(positions - 1, dtype=torch.float64)
    for _ in range(draws):
        hit = torch.zeros(positions, dtype=torch.float64)
        hit[drawing.draw_seeds(rng_seed(), one_dimension(positions, gamma))] = 1
        counts += hit
        pairs += (hit[1:] - gamma) * (hit[:-1] - gamma)
    variance = gamma * (1 - gamma)
    assert ((counts / draws - gamma).abs() < 5 * math.sqrt(variance / draws)).all(), "no position is favoured"
    total = counts.sum().item() / (draws * positions)
    assert abs(total - gamma) < 5 * math.sqrt(variance / (draws * positions))
    assert abs(pairs.mean().item() / draws) < 5 * variance / math.sqrt(draws * (positions - 1)), "neighbours"


@pytest.mark.parametrize("positions", [2 * 10**8, 2**33 + 12345])
def test_early_planes_of_large_tensors_are_not_favoured(positions):
    gamma, bins = 1e6 / positions, 50
    seeds = drawing.draw_seeds(rng_seed(), one_dimension(positions, gamma))
    assert (seeds.diff() > 0).all()
    assert seeds[-1] < positions
    assert abs(len(seeds) - 1e6) < 5e3
    counts = torch.bincount(seeds * bins // positions, minlength=bins).double()
    expected = len(seeds) / bins
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi2 - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


def test_the_same_rng_seed_gives_the_same_seeds_for_any_number_of_threads():
    seed, threads = rng_seed(), torch.get_num_threads()
    blocks = one_dimension(3_000_000, 0.1)
    drawn = []
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            drawn.append(drawing.draw_seeds(seed, blocks))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("gamma", [1e-7, 0.001, 0.3, 0.99])
def test_drawing_a_fixed_number_gives_the_same_seeds_and_a_surplus(gamma):
    seed, blocks = rng_seed(), one_dimension(200_000, gamma)
    seeds, fixed = drawing.draw_seeds(seed, blocks), drawing.draw_fixed_number(seed, blocks)
    assert torch.equal(fixed[: len(seeds)], seeds)
    assert (fixed[len(seeds) :] == blocks.positions).all()
    assert len(fixed) > len(seeds)


@pytest.mark.parametrize("expected", [0.0, 1e-3, 0.1, 1.0, 30.0, 1e4])
def test_a_fixed_number_is_enough(expected):
    """Fewer gaps than seeds are needed with a probability below 1e-14, by Poisson's own tail."""
    enough = drawing.enough(expected)
    tail = torch.special.gammainc(
        torch.tensor(enough, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    )
    assert tail < 1e-14


def test_drawing_in_parts_changes_nothing(monkeypatch):
    blocks = Blocks((1,), (9,), (1,), 0.4)
    whole = [drawing.draw_seeds(number, blocks) for number in range(50)]
    for at_once in (1, 2, 3):
        monkeypatch.setattr(drawing, "DRAWN_AT_ONCE", at_once)
        assert all(torch.equal(drawing.draw_seeds(number, blocks), seeds) for number, seeds in enumerate(whole))
