"""The table that a GPU solves of a keep_prob, against that of the host."""

import math
import re
import struct

import pytest
import torch

from helpers.gpu_path import DEVICE, MARKS, compiles, launch, runs
from torch_dropblock.core.geometry import gamma
from torch_dropblock.core.seeds import MOST_EXPECTED, MOST_LAM, TABLE, poisson_table, table_of

triton_gamma = pytest.importorskip("torch_dropblock.backends.triton.gamma")
pytestmark = MARKS


SIZES = [((28, 28), (7, 7)), ((14, 14), (1, 1)), ((100,), (100,)), ((6, 8, 7), (3, 2, 7)), ((112, 80), (40, 33))]


def solved(keep_prob, size, block, rate="exact", length=3388):
    value = torch.tensor(keep_prob, dtype=torch.float64, device=DEVICE)
    return launch.solved_table(value, size, block, rate, length)


@runs
@pytest.mark.parametrize("rate", ["exact", "paper"])
@pytest.mark.parametrize(("size", "block"), SIZES)
def test_the_table_is_that_of_the_host(size, block, rate):
    """Bit for bit: both round λ to float32 before the table is made of it, which hides how it was solved.

    Unless the two λ, which differ by 1e-15 of themselves or so, lie on either side of a tie: one chance in 10^7.
    """
    for keep_prob, length in [(0.01, 3388), (0.5, 120), (0.50001, 784), (0.9, 65535), (1 - 1e-12, 120), (1.0, 1080)]:
        mine = solved(keep_prob, size, block, rate, length).cpu()
        assert torch.equal(mine, table_of(size, block, length, keep_prob, rate)), keep_prob


@runs
def test_a_keep_prob_near_0():
    """The host's λ has lost digits there, since it comes from a γ that a float64 holds in part."""
    for size, block in SIZES[:3]:
        lam = -math.log1p(-gamma(size, block, 1e-9, "exact"))
        assert solved(1e-9, size, block, length=120).tolist() == pytest.approx(poisson_table(lam, 120), rel=1e-5)


@runs
@pytest.mark.parametrize(
    ("keep_prob", "lam"), [(-0.5, MOST_LAM), (0.0, MOST_LAM), (math.nan, MOST_LAM), (1.5, 0.0), (math.inf, 0.0)]
)
def test_a_keep_prob_outside_is_cut(keep_prob, lam):
    assert solved(keep_prob, (28, 28), (7, 7)).tolist() == poisson_table(lam, 3388)


@runs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_keep_prob_of_another_dtype(dtype):
    value = torch.tensor(0.75, dtype=dtype, device=DEVICE)
    mine = launch.solved_table(value, (28, 28), (7, 7), "exact", 3388).cpu()
    assert torch.equal(mine, table_of((28, 28), (7, 7), 3388, 0.75, "exact"))


# --- the compiler, without a GPU ---------------------------------------------------------------------------------


def variants():
    types = {"keep_prob": "*fp64", "table": "*fp64"}
    types |= dict.fromkeys(["length", "s0", "s1", "s2", "b0", "b1", "b2"], "i32")
    for paper in (False, True):
        constants = {"PAPER": paper, "LANES": 64}
        constants |= {"TABLE": TABLE, "MOST_EXPECTED": MOST_EXPECTED, "MOST_LAM": MOST_LAM}
        yield triton_gamma.solve, types, constants, {"num_warps": 1, "enable_fp_fusion": False}


def the_table_is_made_as_written(ptx, *_):
    """From the float32 on, every operation is rounded on its own, and as the host rounds it."""
    _, _, code = ptx.partition("cvt.rn.f32.f64")
    arithmetic = set(re.findall(r"\b((?:fma|mad|mul|add|sub|div|rcp)\.\S*f(?:32|64))", code))
    assert arithmetic == {"mul.rn.f64", "add.rn.f64", "sub.rn.f64", "div.rn.f64"}
    (bits,) = struct.unpack("Q", struct.pack("d", 1e-18))
    assert f"0d{bits:016X}" in code, "a float64, and not the nearest float32"


test_every_kernel_compiles = compiles(variants, the_table_is_made_as_written)
