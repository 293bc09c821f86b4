"""Histograms of the number of blocks that cover a unit of a map: exact ones, and short ones for maps of any size.

A unit at coordinate u is covered by `n(u) = ∏ n_i(u_i)` blocks. Along an axis every number below the largest, `top`,
occurs twice, once near each end. The histogram of n is the product of one histogram per axis.

The short histogram serves sums of `exp(-λ n)`, which are smooth in log n. It moves each number to a grid in log n, with
the weights of Lagrange interpolation between its neighbours there. Products of numbers then become sums of places, and
products of histograms become convolutions.
"""

from __future__ import annotations

import math
from functools import lru_cache

Size = tuple[int, ...]
Histogram = tuple[tuple[float, float], ...]

# Up to this many products of numbers, the exact histogram is as fast to sum as the short one.
FEW = 400
# Places of the grid per factor of 2, and neighbours on each side for interpolation. With equal numbers of both, powers
# of 2 keep their places, and no other number is moved below 1.
PLACES = 10
# Numbers of an axis below FIRST_OCTAVE are taken one by one; above, each octave is taken by NODES nodes.
FIRST_OCTAVE, NODES = 32, 12


@lru_cache(maxsize=1024)
def exact(size: Size, block: Size) -> tuple[tuple[int, int], ...]:
    """Return the distinct numbers of blocks that cover a unit, each with the number of units that have it."""
    counts = {1: 1}
    for s, b in zip(size, block, strict=True):
        product: dict[int, int] = {}
        top = min(b, s - b + 1)
        axis = [(n, 2) for n in range(1, top)] + [(top, s - 2 * (top - 1))]
        for n, count in counts.items():
            for m, times in axis:
                product[n * m] = product.get(n * m, 0) + count * times
        counts = product
    return tuple(counts.items())


@lru_cache(maxsize=1024)
def short(size: Size, block: Size) -> Histogram:
    """Return numbers and weights whose sums of `exp(-λ n)` equal those of `exact`; some weights are negative."""
    if math.prod(min(b, s - b + 1) for s, b in zip(size, block, strict=True)) <= FEW:
        return exact(size, block)
    places = [1.0]
    for s, b in zip(size, block, strict=True):
        axis, product = _on_grid(s, min(b, s - b + 1)), [0.0] * len(places)
        product += [0.0] * (len(axis) - 1)
        for i, weight in enumerate(places):
            for j, other in enumerate(axis, i):
                product[j] += weight * other
        places = product
    return tuple((2.0 ** (i / PLACES), weight) for i, weight in enumerate(places) if weight)


def _on_grid(s: int, top: int) -> list[float]:
    """Return the histogram of one axis, on the grid."""
    places = [0.0] * (math.ceil(PLACES * math.log2(top)) + PLACES + 1)
    for n, count in _axis(s, top):
        place = PLACES * math.log2(n)
        first = math.floor(place) - PLACES + 1
        if place == math.floor(place):
            places[int(place)] += count
            continue
        product = math.prod(place - first - i for i in range(2 * PLACES))
        for i, factor in enumerate(_FACTORS):
            places[first + i] += count * factor * product / (place - first - i)
    return places


# factors of Lagrange's polynomials at 0, 1, …: one over the product of a node's distances to the others
_FACTORS = [(-1) ** (i + 1) / (math.factorial(i) * math.factorial(2 * PLACES - 1 - i)) for i in range(2 * PLACES)]


def _axis(s: int, top: int) -> list[tuple[float, float]]:
    """Return the numbers along an axis with their counts of units; octaves of them by Gauss quadrature."""
    entries: list[tuple[float, float]] = [(n, 2.0) for n in range(1, min(top, FIRST_OCTAVE))]
    low = FIRST_OCTAVE
    while low < top:
        high = min(2 * low, top)
        if high - low <= 2 * NODES:
            entries += [(n, 2.0) for n in range(low, high)]
        else:
            entries += [((low + high - 1) / 2 + node, 2.0 * weight) for node, weight in _quadrature(high - low)]
        low = high
    return [*entries, (top, s - 2.0 * (top - 1))]


@lru_cache(maxsize=1024)
def _quadrature(count: int) -> tuple[tuple[float, float], ...]:
    """Return nodes and weights for a sum over `count` consecutive integers around 0, exact for degrees below 2 NODES.

    The nodes are the roots of a discrete Chebyshev (Gram) polynomial, found by Newton's method from Legendre's.
    """
    betas = [k * k * (count * count - k * k) / (4.0 * (4 * k * k - 1)) for k in range(1, NODES)]
    nodes = []
    for i in range(NODES):
        x, step = count / 2 * math.cos(math.pi * (i + 0.75) / (NODES + 0.5)), math.inf
        while abs(step) > 1e-14 * count:
            before, value, slope_before, slope = 1.0, x, 0.0, 1.0
            for beta in betas:
                before, value, slope_before, slope = (
                    value,
                    x * value - beta * before,
                    slope,
                    value + x * slope - beta * slope_before,
                )
            step = value / slope
            x -= step
        before, value, norm, total = 1.0, x, float(count), 1.0 / count
        for beta in betas:
            norm *= beta
            total += value * value / norm
            before, value = value, x * value - beta * before
        nodes.append((x, 1.0 / total))
    return tuple(nodes)
