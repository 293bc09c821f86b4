"""γ on a GPU against that of the host."""

import itertools
import math

import pytest
import torch

from helpers.gpu_path import DEVICE, INTERPRETED, MARKS, compiles, interpret, launch, runs
from torch_dropblock.core import geometry

triton_gamma = pytest.importorskip("torch_dropblock.backends.triton.gamma")
pytestmark = MARKS


@pytest.mark.skipif(INTERPRETED, reason="this is the process in which the others run")
def test_in_the_interpreter():
    interpret(__file__)


@runs
@pytest.mark.parametrize("rate", ["exact", "paper"])
def test_gamma_is_solved_on_the_device(rate):
    sizes = [((28, 28), (7, 7)), ((7, 7), (7, 7)), ((14, 14), (1, 1)), ((100,), (9,)), ((6, 8, 7), (3, 2, 7))]
    for (size, block), keep_prob in itertools.product(
        [*sizes, ((112, 80), (40, 33))], [0.0, 1e-12, 0.1, 0.5, 0.50001, 0.9, 0.999, 1 - 1e-12, 1.0]
    ):
        gap = launch.mean_gap(torch.tensor(keep_prob, dtype=torch.float64, device=DEVICE), size, block, rate).item()
        gamma = geometry.gamma(size, block, keep_prob, rate)
        expected = math.inf if gamma == 0.0 else 0.0 if gamma >= 1.0 else -1.0 / math.log1p(-gamma)
        # a gap of 0.03 is a γ of 1 - 1e-14, of which a float64 has two digits
        assert gap == pytest.approx(expected, rel=1e-8, abs=1e-3 if gamma > 1 - 1e-9 else 0)


def variants():
    for paper in (False, True):
        constants = {"PAPER": paper, "LANES": 64}
        yield triton_gamma.solve, ["*fp64", "*fp64", *["i32"] * 6], constants, {"num_warps": 1}, ()


test_every_kernel_compiles = compiles(variants)


@runs
@pytest.mark.parametrize(("keep_prob", "expected"), [(-0.5, 0.0), (1.5, math.inf)])
def test_a_keep_prob_outside_is_cut(keep_prob, expected):
    value = torch.tensor(keep_prob, dtype=torch.float64, device=DEVICE)
    assert launch.mean_gap(value, (28, 28), (7, 7), "exact").item() == expected
