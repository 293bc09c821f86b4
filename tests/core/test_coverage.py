"""The short histogram against the exact one, and the quadrature that it is made with against sums of powers."""

import math
import time

import pytest

from torch_dropblock.core import coverage, geometry

LARGE = [
    ((512, 512), (256, 256)),
    ((16_000,), (8000,)),
    ((64, 64, 64), (32, 32, 32)),
    ((401, 1024), (200, 700)),
    ((1000, 37), (40, 20)),
    ((40, 41, 42), (9, 8, 39)),
    ((857,), (429,)),
]


TERMS = {
    "kept": lambda rate, n: math.exp(-rate * n),
    "dropped": lambda rate, n: -math.expm1(-rate * n),
    "slope": lambda rate, n: n * math.exp(-rate * n),
}


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize(("size", "block"), LARGE)
def test_the_short_histogram_gives_the_same_sums(size, block, term):
    exact, short, units = coverage.exact(size, block), coverage.short(size, block), math.prod(size)
    assert len(short) < 200
    assert math.fsum(weight for _, weight in short) == pytest.approx(units, rel=1e-14)
    largest = max(n for n, _ in exact)
    for rate in (1e-12 / largest, 1e-3 / largest, 1 / largest, 30 / largest, 1e-2, 0.3, 5.0, 400.0):
        expected, of_few = (math.fsum(count * term(rate, n) for n, count in of) for of in (exact, short))
        assert of_few == pytest.approx(expected, rel=1e-13, abs=0)


@pytest.mark.parametrize(("size", "block"), LARGE)
@pytest.mark.parametrize("keep_prob", [1 - 1e-12, 0.999, 0.9, 0.5, 0.1, 1e-3, 1e-100])
def test_lambda_is_that_of_the_exact_histogram(monkeypatch, size, block, keep_prob):
    lam = geometry._exact_lam(size, block, keep_prob)
    monkeypatch.setattr(coverage, "short", coverage.exact)
    assert lam == pytest.approx(geometry._exact_lam(size, block, keep_prob), rel=1e-12, abs=0)


@pytest.mark.parametrize(("size", "block"), [((28, 28), (7, 7)), ((14,), (14,)), ((20, 20, 20), (7, 7, 7))])
def test_few_numbers_stay_exact(size, block):
    assert coverage.short(size, block) is coverage.exact(size, block)


def test_a_new_size_is_quick_too():
    start = time.perf_counter()
    sides = range(1 << 12, 1 << 30, 1 << 23)
    for side in sides:
        coverage.short((side,), (side // 3,))
    assert (time.perf_counter() - start) / len(sides) < 0.05  # 2 ms where nothing else runs


@pytest.mark.parametrize("count", [25, 26, 31, 100, 3000])
def test_a_quadrature_sums_powers(count):
    nodes = coverage._quadrature(count)
    assert len({round(node, 6) for node, _ in nodes}) == coverage.NODES
    for power in range(0, 2 * coverage.NODES, 2):
        expected = math.fsum((i - (count - 1) / 2) ** power for i in range(count))
        assert math.fsum(weight * node**power for node, weight in nodes) == pytest.approx(expected, rel=1e-12)
