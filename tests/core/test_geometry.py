"""γ and the keep rates, against sums over every position and against known limits."""

import itertools
import math
import time

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from torch_dropblock import expected_keep_rate, keep_rate_map, seed_probability
from torch_dropblock.core import geometry

sizes = st.lists(st.integers(1, 24), min_size=1, max_size=3).map(tuple)


def covering(size, block, unit):
    """The number of blocks that cover a unit, by trying them all."""
    corners = itertools.product(*(range(s - min(s, b) + 1) for s, b in zip(size, block, strict=True)))
    return sum(all(c <= u < c + b for c, u, b in zip(corner, unit, block, strict=True)) for corner in corners)


@given(
    size=sizes,
    block=st.lists(st.integers(1, 30), min_size=3, max_size=3),
    keep_prob=st.floats(0, 1) | st.floats(1e-15, 1e-3) | st.floats(1e-15, 1e-3).map(lambda x: 1 - x),
)
@example(size=(28, 28), block=[7, 7, 7], keep_prob=0.0)
@example(size=(28, 28), block=[7, 7, 7], keep_prob=1.0)
@example(size=(28, 28), block=[7, 7, 7], keep_prob=5e-324)
@example(size=(1,), block=[1, 1, 1], keep_prob=0.3)
def test_exact_gamma_keeps_what_is_asked(size, block, keep_prob):
    block = block[: len(size)]
    gamma = seed_probability(size, block, keep_prob)
    assert 0.0 <= gamma <= 1.0
    assert gamma <= 1 - keep_prob + 1e-12
    assert abs(expected_keep_rate(size, block, gamma) - keep_prob) < 1e-12


@pytest.mark.parametrize("size", [(224, 224), (1000, 37), (1024, 1024), (100_000,), (64, 64, 64)])
@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.9, 1.5])
@pytest.mark.parametrize("keep_prob", [1e-6, 0.5, 0.9, 0.999999])
def test_exact_gamma_on_large_maps(size, share, keep_prob):
    block = [max(1, int(s * share)) for s in size]
    gamma = seed_probability(size, block, keep_prob)
    assert abs(expected_keep_rate(size, block, gamma) - keep_prob) < 1e-9


def test_exact_gamma_meets_the_share_dropped_precisely_when_it_is_tiny():
    for drop in (1e-6, 1e-9, 1e-12, 1e-14):
        keep_prob = 1 - drop
        gamma = seed_probability((28, 28), 7, keep_prob)
        # with so few blocks hardly any overlap: γ is the share dropped over the mean number of blocks on a unit
        mean_covering = 49 * 22 * 22 / 28**2
        assert gamma * mean_covering == pytest.approx(1 - keep_prob, rel=50 * drop + 1e-12, abs=0)


@pytest.mark.parametrize(("size", "block"), [((5,), (3,)), ((6, 4), (3, 2)), ((4, 7), (7, 3)), ((3, 4, 5), (2, 2, 4))])
def test_keep_rate_map_is_the_sum_over_blocks(size, block):
    rates = keep_rate_map(size, block, 0.2)
    assert rates.shape == size
    assert rates.dtype == torch.float64
    block = tuple(min(s, b) for s, b in zip(size, block, strict=True))
    for unit in itertools.product(*map(range, size)):
        assert rates[unit].item() == pytest.approx(0.8 ** covering(size, block, unit), rel=1e-12)


@given(size=sizes, block=st.lists(st.integers(1, 30), min_size=3, max_size=3), gamma=st.floats(0, 1))
def test_expected_keep_rate_is_the_mean_of_the_map(size, block, gamma):
    block = block[: len(size)]
    rate = expected_keep_rate(size, block, gamma)
    assert rate == pytest.approx(keep_rate_map(size, block, gamma).mean().item(), rel=1e-9, abs=1e-300)


def test_paper_gamma_is_equation_1():
    assert seed_probability((28, 28), 7, 0.9, "paper") == pytest.approx(0.1 / 49 * 28**2 / 22**2)
    assert seed_probability((40, 10), (7, 3), 0.9, "paper") == pytest.approx(0.1 / 21 * 400 / (34 * 8))
    assert seed_probability(100, 9, 0.8, "paper") == pytest.approx(0.2 / 9 * 100 / 92)
    assert seed_probability((8, 9, 10), 3, 0.8, "paper") == pytest.approx(0.2 / 27 * 720 / (6 * 7 * 8))


def test_paper_gamma_drops_less_than_asked():
    assert 1 - expected_keep_rate((28, 28), 7, seed_probability((28, 28), 7, 0.5, "paper")) == pytest.approx(
        0.37, abs=0.005
    )


@pytest.mark.parametrize("rate", ["exact", "paper"])
@pytest.mark.parametrize("keep_prob", [0.0, 0.3, 0.9, 1.0])
def test_limits(rate, keep_prob):
    assert seed_probability((9, 13), 1, keep_prob, rate) == pytest.approx(1 - keep_prob), "block 1 is Dropout"
    assert seed_probability((7, 7), 7, keep_prob, rate) == pytest.approx(1 - keep_prob), "block = map is Dropout2d"
    assert seed_probability((7, 5), 99, keep_prob, rate) == pytest.approx(1 - keep_prob), "a larger block is clamped"


def test_keep_prob_0_needs_every_position():
    assert seed_probability((28, 28), 7, 0.0) == 1.0
    assert expected_keep_rate((28, 28), 7, 1.0) == 0.0
    assert seed_probability((28, 28), 7, 1.0) == 0.0
    assert expected_keep_rate((28, 28), 7, 0.0) == 1.0


@pytest.mark.parametrize(
    ("size", "block", "most"),
    [
        ((28, 28), (7, 7), 100e-6),
        ((512, 512), (256, 256), 1e-3),
        ((16_000,), (8000,), 1e-3),
        ((64, 64, 64), (32, 32, 32), 1e-3),
    ],
)
def test_gamma_is_solved_at_every_step_of_a_schedule_without_cost(size, block, most):
    times = []
    for step in range(200):
        keep_prob = 1 - 0.1 * (step + 1) / 200
        start = time.perf_counter()
        geometry._exact_lam(size, block, keep_prob)
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 10] < most  # what a busy machine adds is not the solver's doing


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: seed_probability((28, 0), 7, 0.9), "size"),
        (lambda: seed_probability((28, 28.0), 7, 0.9), "size"),
        (lambda: seed_probability((2, 2, 2, 2), 7, 0.9), "size"),
        (lambda: seed_probability((), 7, 0.9), "size"),
        (lambda: seed_probability((28, 28), (7, 7, 7), 0.9), "block_size"),
        (lambda: seed_probability((28, 28), 0, 0.9), "block_size"),
        (lambda: seed_probability((28, 28), 7, 1.1), "keep_prob"),
        (lambda: seed_probability((28, 28), 7, math.nan), "keep_prob"),
        (lambda: seed_probability((28, 28), 7, 0.9, "fast"), "rate"),
        (lambda: expected_keep_rate((28, 28), 7, -0.1), "seed_prob"),
        (lambda: expected_keep_rate((28, 28), "7", 0.1), "block_size"),
        (lambda: keep_rate_map((28, 28), 7, 2), "seed_prob"),
        (lambda: keep_rate_map("28", 7, 0.1), "size"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message} must be "):
        call()


@pytest.mark.parametrize("size", [(14, 14), (40, 10), (28, 28)])
@pytest.mark.parametrize("dropped", [1e-9, 1e-12, 1e-14])
def test_so_few_blocks_do_not_overlap_and_equation_1_is_exact(size, dropped):
    exact, paper = (seed_probability(size, 7, 1 - dropped, rate) for rate in ("exact", "paper"))
    assert exact == pytest.approx(paper, rel=100 * dropped + 1e-12, abs=0)


def test_the_map_of_keep_rates_is_on_the_cpu():
    with torch.device("meta"):
        assert keep_rate_map(5, 3, 0.1).device == torch.device("cpu")
