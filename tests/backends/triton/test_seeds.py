"""The pieces of drawing on a GPU; `test_draw.py` and `test_draw_channels.py` compare what they make with the oracle."""

import pytest
import torch

from helpers.gpu_path import DEVICE, MARKS, runs
from torch_dropblock.backends.triton import plan
from torch_dropblock.core import keys

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")
seeds = pytest.importorskip("torch_dropblock.backends.triton.seeds")
pytestmark = MARKS


@triton.jit
def mix_all(words, output, N: tl.constexpr):
    i = tl.arange(0, N)
    mixed = seeds.mix(tl.load(words + i).to(tl.uint64, bitcast=True))
    tl.store(output + i, mixed.to(tl.int64, bitcast=True))


@triton.jit(do_not_specialize=["reciprocal", "divisor", "inverse"])
def divide_all(numbers, output, reciprocal, divisor, inverse, N: tl.constexpr):
    i = tl.arange(0, N)
    number = tl.load(numbers + i)
    tl.store(output + i, seeds.divided(number.to(tl.int32), reciprocal).to(tl.int64))
    tl.store(output + N + i, seeds.quotient(number, divisor, inverse))


@runs
def test_words_are_mixed_as_on_the_host():
    words = torch.randint(-(2**63), 2**63 - 1, (128,), device=DEVICE)
    mixed = torch.empty_like(words)
    mix_all[(1,)](words, mixed, 128)
    assert mixed.tolist() == [keys.mixed(word) for word in words.tolist()]


@runs
@pytest.mark.parametrize("divisor", [1, 3, 49, 64, 784, 2**20 - 1, 2**29])
def test_divisions_are_exact(divisor):
    numbers = torch.randint(2**31, (1024,), device=DEVICE)
    numbers[:512] = numbers[:512] // divisor * divisor  # and one less: where a rounding would show
    numbers[:256] -= numbers[:256].sign()
    quotients = torch.empty(2, 1024, dtype=torch.int64, device=DEVICE)
    divide_all[(1,)](numbers, quotients, plan.reciprocal(divisor), divisor, plan.inverse(divisor), 1024)
    assert torch.equal(quotients, (numbers // divisor).expand(2, -1))
