"""Solve λ on a GPU, from a keep_prob that only the GPU holds, and make the table for drawing."""
# Triton reads the annotations of a kernel as they are, so there is no `from __future__ import annotations`.

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

# Below it, log(1 - v) is computed as a short sum: 1 - v would lose the low bits of v.
SMALL = tl.constexpr(2.0**-8)


@triton.jit
def series(v):
    """Return -log(1 - v) for 0 <= v < 2^-8 in float64, with a relative error below 2^-45."""
    return v * (1.0 + v * (1.0 / 2 + v * (1.0 / 3 + v * (1.0 / 4 + v * (1.0 / 5 + v * (1.0 / 6))))))


@triton.jit
def _minus_log1m(v):
    """Return -log(1 - v) for 0 <= v <= 1."""
    return tl.where(v < SMALL, series(v), -tl.log(1.0 - v))


@triton.jit
def _moment(size, block, most, POWER: tl.constexpr):
    """Return the mean, over the units along an axis, of the number of blocks that cover a unit, or of its square."""
    t = most.to(tl.float64)
    s = size.to(tl.float64)
    if POWER == 1:
        return block.to(tl.float64) * (s - block.to(tl.float64) + 1) / s
    return ((t - 1) * t * (2 * t - 1) / 3 + (s - 2 * t + 2) * t * t) / s


@triton.jit
def _store_table(table, lam, length, TABLE: tl.constexpr, MOST_EXPECTED: tl.constexpr, MOST_LAM: tl.constexpr):
    """Store `seeds.poisson_table`: the same operations in the same order, unfused (see `launch.solved_table`)."""
    # a plain number compared with a float64 would be rounded to float32
    least = tl.full((), 1e-18, tl.float64)
    expected = tl.minimum(lam, MOST_LAM).to(tl.float32).to(tl.float64) * length.to(tl.float64)
    numbers = tl.maximum(tl.ceil(expected / MOST_EXPECTED), 1.0)
    expected = expected / numbers
    part = expected / 128.0
    exponential = tl.full((), 1.0, tl.float64)
    for i in range(16):
        exponential = 1.0 - part * exponential / (16 - i)
    for _ in range(7):
        exponential = exponential * exponential
    entry = tl.arange(0, TABLE)
    values = tl.where(entry == 0, numbers, 1.0)
    probability = exponential
    sum = exponential
    k = 1
    while ((probability > least) | (k < expected)) & (k < TABLE):
        values = tl.where(entry == k, tl.minimum(sum, 1.0), values)
        probability = probability * expected / k
        sum += probability
        k += 1
    tl.store(table + entry, values)


@triton.jit(do_not_specialize=["keep_prob", "length", "s0", "s1", "s2", "b0", "b1", "b2"])
def solve(
    keep_prob,
    table,
    length,
    s0,
    s1,
    s2,
    b0,
    b1,
    b2,
    PAPER: tl.constexpr,
    LANES: tl.constexpr,
    TABLE: tl.constexpr,
    MOST_EXPECTED: tl.constexpr,
    MOST_LAM: tl.constexpr,
):
    """Solve λ by Newton's method, like `geometry.gamma`, and store the table of streams of `length` positions."""
    keep = tl.minimum(tl.maximum(tl.load(keep_prob).to(tl.float64), 0.0), 1.0)
    units = s0.to(tl.float64) * s1.to(tl.float64) * s2.to(tl.float64)
    v0 = s0 - b0 + 1
    v1 = s1 - b1 + 1
    v2 = s2 - b2 + 1
    if PAPER:
        block = b0.to(tl.float64) * b1.to(tl.float64) * b2.to(tl.float64)
        valid = v0.to(tl.float64) * v1.to(tl.float64) * v2.to(tl.float64)
        lam = _minus_log1m(tl.minimum((1.0 - keep) * units / (block * valid), 1.0))
    else:
        t0 = tl.minimum(b0, v0)
        t1 = tl.minimum(b1, v1)
        t2 = tl.minimum(b2, v2)
        combinations = t0 * t1 * t2
        solvable = tl.maximum(keep, 1e-200)
        goal = tl.where(keep > 0.5, -_minus_log1m(1.0 - keep), tl.log(solvable))
        # start: the root for normally distributed n, or, if there is none, Newton's first step from 0
        mean = _moment(s0, b0, t0, 1) * _moment(s1, b1, t1, 1) * _moment(s2, b2, t2, 1)
        variance = _moment(s0, b0, t0, 2) * _moment(s1, b1, t1, 2) * _moment(s2, b2, t2, 2) - mean * mean
        rate = -2.0 * goal / (mean + tl.sqrt(tl.maximum(mean * mean + 2.0 * variance * goal, 0.0)))
        rate = tl.where(mean * mean + 2.0 * variance * goal > 0.0, rate, -goal / mean)
        step = tl.where(keep < 1e-200, 0.0, rate + 1.0)
        turn = 0
        # each step squares the error, which must end far below float32 precision
        while (tl.abs(step) > 1e-8 * rate) & (turn < 100):
            kept_of = tl.zeros((LANES,), tl.float64)
            dropped_of = tl.zeros((LANES,), tl.float64)
            slope_of = tl.zeros((LANES,), tl.float64)
            for start in range(0, combinations, LANES):
                k = start + tl.arange(0, LANES)
                n0 = k % t0 + 1
                n1 = (k // t0) % t1 + 1
                n2 = k // (t0 * t1) + 1
                c0 = tl.where(n0 < t0, 2, s0 - 2 * (t0 - 1))
                c1 = tl.where(n1 < t1, 2, s1 - 2 * (t1 - 1))
                c2 = tl.where(n2 < t2, 2, s2 - 2 * (t2 - 1))
                count = c0.to(tl.float64) * c1.to(tl.float64) * c2.to(tl.float64)
                count = tl.where(k < combinations, count, 0.0)
                n = n0.to(tl.float64) * n1.to(tl.float64) * n2.to(tl.float64)
                y = n * rate
                kept = tl.exp(-y)
                # 1 - exp(-y); for a small y, a sum
                z = tl.minimum(y, SMALL)
                sum = z * (1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5 * (1 - z / 6)))))
                kept_of += count * kept
                dropped_of += count * tl.where(y < SMALL, sum, 1 - kept)
                slope_of += count * n * kept
            kept_share = tl.sum(kept_of, axis=0) / units
            dropped_share = tl.sum(dropped_of, axis=0) / units
            log_kept = tl.where(dropped_share < 0.5, -_minus_log1m(tl.minimum(dropped_share, 0.5)), tl.log(kept_share))
            step = (log_kept - goal) * kept_share * units / tl.sum(slope_of, axis=0)
            rate += step
            turn += 1
        lam = tl.where(keep < 1e-200, MOST_LAM, rate)
    _store_table(table, lam, length, TABLE, MOST_EXPECTED, MOST_LAM)
