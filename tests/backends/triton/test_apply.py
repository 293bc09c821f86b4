"""Applying a mask on a GPU: the values against the oracle in every layout, machine code."""

import itertools
import math
import re

import pytest
import torch

from helpers.gpu_path import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    MARKS,
    assert_same,
    compiled,
    interpret,
    launch,
    rng_seed,
    runs,
    some_blocks,
)
from torch_dropblock.backends.sparse import CHANNELS_LAST
from torch_dropblock.core import reference

tl = pytest.importorskip("triton.language")
triton_apply = pytest.importorskip("torch_dropblock.backends.triton.apply")
pytestmark = MARKS


@pytest.mark.skipif(INTERPRETED, reason="this is the process in which the others run")
def test_in_the_interpreter():
    interpret(__file__)


def layouts(x):
    yield x
    if x.dim() in CHANNELS_LAST:
        yield x.to(memory_format=CHANNELS_LAST[x.dim()])
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield x.repeat_interleave(2, -1)[..., ::2]
    yield x[:1].expand(x.shape)


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [(), (1,), (0,), (0, 1)], ids=str)
@pytest.mark.parametrize(
    ("lead", "size", "block"), [((3, 5), (9, 11), (3, 4)), ((2, 33), (50,), (5,)), ((2, 3), (3, 4, 5), (2, 2, 3))]
)
def test_values_are_those_of_the_oracle_in_every_layout(lead, size, block, shared, dtype):
    mask = launch.draw(rng_seed(), some_blocks(lead, size, block, 0.7, shared))
    kept = ~mask.dense()
    whole = torch.randn(*lead, *size, device=DEVICE).to(dtype)
    whole.view(-1)[::17] = math.inf
    whole.view(-1)[5::23] = math.nan
    for x in layouts(whole):
        expected = reference.drop_block(x.cpu(), kept.cpu().expand(x.shape)).to(DEVICE)
        output = torch.empty_like(x)
        launch.apply(x, output, mask)
        assert_same(output, expected)
        if 0 not in x.stride():
            inside = x.clone()
            launch.apply(inside, inside, mask)
            assert_same(inside, expected)


@runs
def test_a_mask_shared_by_channels_that_does_not_start_a_word():
    """Three samples of nine channels: windows of bits begin anywhere in a word."""
    mask = launch.draw(rng_seed(), some_blocks((3, 9), (5, 7), (2, 2), 0.6, (1,)))
    x = torch.randn(3, 9, 5, 7, device=DEVICE)
    output = torch.empty_like(x)
    launch.apply(x, output, mask)
    assert torch.equal(output == 0, mask.dense().expand(x.shape))


# --- the compiler, without a GPU ---------------------------------------------------------------------------------


def variants():
    """Every kernel with the types and constants of its calls, and which numbers are multiples of 16."""
    how = launch.Launch()
    for dtype, elements in itertools.product(["fp16", "bf16", "fp32", "fp64"], ["i32", "i64"]):
        op = tl.float64 if dtype == "fp64" else tl.float32
        memory = [f"*{dtype}", f"*{dtype}"]
        constants = {"OP": op, "EIGHTS": how.eights}
        yield triton_apply.apply_flat, [*memory, "*u8", "*fp64", elements], constants, {}, ("elements",)
        constants = {"OP": op, "CHANNELS": how.channels}
        yield triton_apply.apply_tiles, [*memory, "*i32", "*fp64", *["i32"] * 13], constants, {}, ()
        constants |= {"input_channel": 1, "output_channel": 1}  # channels last; then few channels
        yield triton_apply.apply_tiles, [*memory, "*i32", "*fp64", *["i32"] * 11], constants, {}, CHANNELS_INSIDE
        yield triton_apply.apply_tiles, [*memory, "*i32", "*fp64", *["i32"] * 11], constants | {"CHANNELS": 4}, {}, ()
    constants = {"ROWS": 2, "COLUMNS": 8, "TASKS": how.tasks}
    yield triton_apply.channels_inside, ["*i32", "*i32", *["i32"] * 6], constants, {}, ()


CHANNELS_INSIDE = ("channels", "input_sample", "input_unit", "output_sample", "output_unit")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles(capability, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for variant in variants():
        built = compiled(capability, *variant)
        assert built.asm["cubin"]
        _, types, _, _, sixteens = variant
        if types[0] == "*bf16" and sixteens:
            for access in ("ld", "st"):
                assert re.search(access + r"\.global\S*\.v4", built.asm["ptx"]), "16 bytes at once"
