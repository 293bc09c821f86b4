"""Drawing on a GPU: the masks are those of the oracle, bit for bit; statistics; machine code."""

import pytest
import torch

from helpers.gpu_path import (
    DEVICE,
    GEOMETRY,
    MARKS,
    POINTERS,
    assert_is_that_of_the_oracle,
    compiles,
    integers,
    launch,
    new_key,
    no_float_is_added,
    runs,
    some_blocks,
)
from torch_dropblock import keep_rate_map, seed_probability
from torch_dropblock.backends.triton import plan as triton_plan
from torch_dropblock.backends.triton import reserve
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.seeds import MOST_LAM, TABLE, poisson_table

tl = pytest.importorskip("triton.language")
triton_draw = pytest.importorskip("torch_dropblock.backends.triton.draw")
triton_draw_channels = pytest.importorskip("torch_dropblock.backends.triton.draw_channels")
pytestmark = MARKS


# --- the oracle --------------------------------------------------------------------------------------------------


@runs
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("lead", "size", "block", "keep_prob"), GEOMETRY)
def test_the_mask_is_that_of_the_oracle(lead, size, block, keep_prob, shared):
    key, (blocks, table) = new_key(), some_blocks(lead, size, block, keep_prob, shared)
    assert_is_that_of_the_oracle(launch.draw(key, blocks, table), key, table)


def test_the_geometry_has_streams_of_every_kind():
    every = [Blocks.of(lead, size, block, False).streams for lead, size, block, _ in GEOMETRY]
    assert any(s.planes > 1 and s.count > 1 for s in every)
    assert any(s.per_group > 1 and s.group % s.length for s in every)
    assert max(s.length for s in every) > 1 << 15


@runs
@pytest.mark.parametrize("number", [-(2**63), -1, 0, 2**63 - 1])
def test_extreme_keys(number):
    key, (blocks, table) = torch.tensor(number, device=DEVICE), some_blocks((2, 3), (9, 9), (3, 3), 0.7)
    assert_is_that_of_the_oracle(launch.draw(key, blocks, table), key, table)


@runs
def test_the_greatest_lambda_drops_everything():
    """That is what `solve` makes of a keep_prob of 0."""
    blocks = Blocks.of((2, 3), (2, 2), (2, 2), False)
    table = torch.tensor(poisson_table(MOST_LAM, blocks.streams.length), dtype=torch.float64, device=DEVICE)
    mask = launch.draw(new_key(), blocks, table)
    assert mask.dense().all()
    assert mask.scale.item() == blocks.units
    x = torch.full((2, 3, 2, 2), torch.nan, device=DEVICE)
    launch.apply(x, x, mask)
    assert (x == 0).all()


@runs
def test_every_bit_of_the_key_counts():
    blocks, table = some_blocks((1, 16), (9, 9), (3, 3))
    key = new_key()
    masks = [launch.draw(key.clone(), blocks, table).words, launch.draw(key, blocks, table).words]
    assert torch.equal(*masks)
    for bit in (0, 31, 32, 63):
        other = key ^ torch.tensor(-(2**63) if bit == 63 else 1 << bit, device=DEVICE)
        assert not any(torch.equal(mask, launch.draw(other, blocks, table).words) for mask in masks)


@runs
def test_a_scale_that_is_known_is_not_counted_again():
    key, (blocks, table) = new_key(), some_blocks((2, 5), (9, 9), (3, 3))
    known, counted = torch.tensor(1.5, dtype=torch.float64, device=DEVICE), launch.draw(key, blocks, table)
    again = launch.draw(key, blocks, table, scale=known)
    assert torch.equal(again.words, counted.words)
    assert again.scale.item() == 1.5 != counted.scale.item()


@runs
def test_every_call_finds_its_counter_at_0():
    for _ in range(reserve.COUNTERS + 1):
        counter = launch._counter(DEVICE)
    key, (blocks, table) = new_key(), some_blocks((2, 5), (9, 9), (3, 3))
    assert len({launch.draw(key, blocks, table).scale.item() for _ in range(3)}) == 1
    assert counter.item() == launch._counter(DEVICE).item() == 0


# --- statistics: tests/core proves the distribution, of the same bits ----------------------------------------------


@runs
@pytest.mark.parametrize(("size", "block"), [((14, 14), (6, 6)), ((6, 8, 7), (3, 3, 3))])
def test_the_share_that_was_asked_for_is_dropped_at_every_position(size, block, z_score):
    planes = 2048
    blocks, table = some_blocks((planes,), size, block, 0.8)
    dropped = launch.draw(new_key(), blocks, table).dense().cpu().double()
    assert abs(z_score(dropped.flatten(1).mean(-1), 0.2)) < 5
    expected = 1 - keep_rate_map(size, block, seed_probability(size, block, 0.8))
    error = (expected * (1 - expected) / planes).sqrt()
    assert ((dropped.mean(0) - expected).abs() <= 5 * error).all()


# --- the compiler, without a GPU ---------------------------------------------------------------------------------

ONE_CHUNK = Blocks.of((64, 256), (28, 28), (7, 7), False)
WIDE = Blocks.of((300,), (512, 512, 512), (512, 512, 512), False)


def variants():
    """The kernel with the types and constants of its calls: of ordinary blocks, and of those that reach furthest."""
    how = launch.Launch()
    for blocks, count in [(ONE_CHUNK, False), (ONE_CHUNK, True), (WIDE, True)]:
        plan = triton_plan.plan_of(blocks, how.words)
        assert plan.one_chunk == (blocks is ONE_CHUNK)
        assert plan.wide == (blocks is WIDE)
        constants = {
            "COUNT": count,
            "COPY": count,
            "ONE_CHUNK": plan.one_chunk,
            "UNIT": tl.int64 if plan.wide else tl.int32,
        }
        constants |= {"STREAMS": how.streams, "DRAWS": how.draws, "CHUNK": plan.chunk, "TABLE": TABLE}
        warps = how.streams * how.draws // 32
        yield triton_draw.draw, POINTERS | integers(plan.parameters), constants, {"num_warps": warps}


test_every_kernel_compiles = compiles(variants, no_float_is_added)
