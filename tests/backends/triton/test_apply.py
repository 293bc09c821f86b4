"""Applying a mask on a GPU: the values against the oracle in every layout, machine code."""

import itertools
import math
import re

import pytest
import torch

from helpers.gpu_path import (
    DEVICE,
    DTYPES,
    MARKS,
    assert_same,
    compiles,
    launch,
    new_key,
    runs,
    some_blocks,
)
from torch_dropblock.backends import triton
from torch_dropblock.backends.sparse import CHANNELS_LAST
from torch_dropblock.core import reference
from torch_dropblock.core.blocks import Blocks

tl = pytest.importorskip("triton.language")
triton_apply = pytest.importorskip("torch_dropblock.backends.triton.apply")
pytestmark = MARKS


@runs
def test_the_backend_returns_the_scale():
    blocks, table = some_blocks()
    x = torch.ones(*blocks.lead, *blocks.size, device=DEVICE)
    output = torch.empty_like(x)
    scale = triton.drop(x, output, new_key(), blocks, table)
    assert scale.item() == pytest.approx(x.numel() / (output != 0).sum().item())


def layouts(x):
    yield x
    if x.dim() in CHANNELS_LAST:
        yield x.to(memory_format=CHANNELS_LAST[x.dim()])
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield x.repeat_interleave(2, -1)[..., ::2]
    yield x[:1].expand(x.shape)


GEOMETRY = [((3, 5), (9, 11), (3, 4)), ((2, 33), (50,), (5,)), ((2, 3), (3, 4, 5), (2, 2, 3))]
SHARED = [(), (1,), (0,), (0, 1)]


@runs
@pytest.mark.parametrize(
    ("geometry", "shared", "dtype"),
    [
        *((GEOMETRY[i % 3], SHARED[i % 4], DTYPES[(i + i // 4) % 4]) for i in range(12)),
        *(pytest.param(*case, marks=pytest.mark.sweep) for case in itertools.product(GEOMETRY, SHARED, DTYPES)),
    ],
    ids=str,
)
def test_values_are_those_of_the_oracle_in_every_layout(geometry, shared, dtype):
    lead, size, block = geometry
    blocks = Blocks(lead, size, block, shared)
    mask = launch.draw(new_key(), blocks, some_blocks(lead, size, block, 0.7)[1])
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
    mask = launch.draw(new_key(), *some_blocks((3, 9), (5, 7), (2, 2), 0.6, True))
    x = torch.randn(3, 9, 5, 7, device=DEVICE)
    output = torch.empty_like(x)
    launch.apply(x, output, mask)
    assert torch.equal(output == 0, mask.dense().expand(x.shape))


# --- the compiler, without a GPU ---------------------------------------------------------------------------------


TILES = [
    *("words", "tiles", "columns_of_tiles", "size", "channels", "sample_bits", "channel_bits"),
    *("input_sample", "input_channel", "input_unit", "output_sample", "output_channel", "output_unit"),
]
CHANNELS_INSIDE = ("channels", "input_sample", "input_unit", "output_sample", "output_unit")


def variants():
    """Every kernel with the types and constants of its calls, and which numbers are multiples of 16."""
    how = launch.Launch()
    for dtype, elements in [("fp16", "i32"), ("bf16", "i32"), ("bf16", "i64"), ("fp32", "i32"), ("fp64", "i64")]:
        op = {"OP": tl.float64 if dtype == "fp64" else tl.float32}
        memory = {"input": f"*{dtype}", "output": f"*{dtype}", "scale": "*fp64"}
        flat = memory | {"mask": "*i64", "elements": elements}
        yield triton_apply.apply_flat, flat, op | {"EIGHTS": how.eights}, {}, ("elements",)
        tiles = memory | {"mask": "*i64"} | dict.fromkeys(TILES, "i32")
        yield triton_apply.apply_tiles, tiles, op | {"CHANNELS": how.channels}, {}, ()
        last = {name: t for name, t in tiles.items() if name not in ("input_channel", "output_channel")}
        ones = op | {"input_channel": 1, "output_channel": 1}
        yield triton_apply.apply_tiles, last, ones | {"CHANNELS": how.channels}, {}, CHANNELS_INSIDE
        yield triton_apply.apply_tiles, last, ones | {"CHANNELS": 4}, {}, ()
    types = {"mask": "*i64", "target": "*i32"}
    types |= dict.fromkeys(["words", "groups", "size", "channels", "rows", "columns"], "i32")
    yield triton_apply.channels_inside, types, {"ROWS": 2, "COLUMNS": 8, "TASKS": how.tasks}, {}, ()


def sixteen_bytes_at_once(ptx, function, types, constants, options, sixteens):
    if types.get("input") == "*bf16" and sixteens:
        for access in ("ld", "st"):
            assert re.search(access + r"\.global\S*\.v4", ptx)


test_every_kernel_compiles = compiles(variants, sixteen_bytes_at_once)
