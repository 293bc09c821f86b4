"""The sparse path piece by piece: where blocks lie in memory, what is counted, scaled and zeroed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_dropblock.backends import sparse
from torch_dropblock.core import geometry, reference
from torch_dropblock.core import seeds as drawing
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.keys import draw_key_number
from torch_dropblock.core.seeds import table_of

CPU = torch.device("cpu")


def some_blocks(lead=(8, 16), size=(28, 28), block=(7, 7), shared=()):
    return Blocks(lead, size, geometry.clamp(size, block), shared)


def table_for(blocks, keep_prob):
    return table_of(blocks.size, blocks.block, blocks.streams.length, keep_prob, "exact")


def draw(blocks, keep_prob=0.9, key=None):
    key = draw_key_number(None) if key is None else key
    return drawing.draw_seeds(key, blocks, table_for(blocks, keep_prob))


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced": lambda t: torch.empty(*(2 * n for n in t.shape))[tuple(slice(None, 2 * n, 2) for n in t.shape)].copy_(t),
    "permuted": lambda t: t.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
}


@pytest.mark.parametrize("shared", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "block"), [((9, 11), (3, 4)), ((7, 7), (7, 7)), ((8, 5), (2, 5)), ((6, 6), (1, 1))])
def test_the_same_seeds_give_the_oracles_mask_and_values(shared, layout, size, block):
    blocks = some_blocks((4, 6), size, block, shared=shared)
    seeds = draw(blocks, 0.8)
    dense = torch.zeros(blocks.positions, dtype=torch.bool)
    dense[seeds] = True
    kept = reference.kept_mask(dense.view(*blocks.own_lead, *blocks.valid), block).expand(4, 6, *size)
    x = LAYOUTS[layout](torch.randn(4, 6, *size))

    assert torch.equal(sparse.dropped_mask(seeds, blocks, CPU).expand(4, 6, *size), ~kept)
    assert sparse.count_dropped(seeds, blocks.flat) == sparse.dropped_mask(seeds, blocks, CPU).sum()
    out = torch.empty_like(x)
    scale = sparse.apply_seeds(x, out, seeds, blocks)
    assert torch.equal(out, reference.drop_block(x, kept))
    assert scale == (kept.numel() / kept.sum().item() if kept.any() else 0.0)
    masked = torch.empty_like(x)
    sparse.apply_masked(x, masked, torch.empty(0, dtype=torch.int64), blocks, None)
    assert torch.equal(masked, x)
    sparse.apply_masked(x, masked, seeds, blocks, None)
    assert torch.equal(masked, out)


def test_the_surplus_of_other_devices_drops_nothing():
    blocks = some_blocks()
    seeds, table = draw(blocks, key=5), table_for(blocks, 0.9)
    fixed = drawing._at_most(torch.tensor(5), blocks, table, 0, blocks.streams.count)
    assert len(fixed) > len(seeds)
    assert torch.equal(sparse.dropped_mask(fixed, blocks, CPU), sparse.dropped_mask(seeds, blocks, CPU))


@pytest.mark.parametrize("at_once", [1, 100, 5000, 10**9])
@pytest.mark.parametrize("shape", [(8, 16, 28, 28), (1, 3, 40, 40), (5, 1, 9, 200), (1, 1, 7, 7)])
def test_working_on_parts_changes_nothing(monkeypatch, at_once, shape):
    blocks = some_blocks(shape[:2], shape[2:])
    seeds, x = draw(blocks), torch.randn(shape)
    whole, parts, count = torch.empty_like(x), torch.empty_like(x), sparse.count_dropped(seeds, blocks.flat)
    sparse.apply_seeds(x, whole, seeds, blocks)
    monkeypatch.setattr(sparse, "BYTES_AT_ONCE", at_once)
    monkeypatch.setattr(sparse, "COUNTED_AT_ONCE", at_once)
    sparse.apply_seeds(x, parts, seeds, blocks)
    assert torch.equal(parts, whole)
    assert sparse.count_dropped(seeds, blocks.flat) == count


@pytest.mark.parametrize("keep_prob", [1e-9, 1e-3])
def test_counting_when_nearly_all_is_dropped(keep_prob):
    blocks = some_blocks()
    seeds = draw(blocks, keep_prob)
    assert (
        sparse.count_dropped(seeds, blocks.flat) == sparse.dropped_mask(seeds, blocks, CPU).sum() > 0.99 * blocks.units
    )


class NothingCrosses(TorchDispatchMode):
    """Refuse what makes the host wait for another device: to read a value, and to copy what lies on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {
            tensor.device.type for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, torch.Tensor)
        }
        copies_table = func is torch.ops.aten._to_copy.default and args[0].shape == (drawing.TABLE,)
        assert len(devices) == 1 or (copies_table and kwargs["non_blocking"]), f"{func.name()} waits for the device"
        return result


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shared", [(), (1,)])
@pytest.mark.parametrize(
    ("size", "block", "samples"),
    [((14, 14), (7, 7), 4), ((30,), (4,), 4), ((8, 9, 7), (3, 2, 4), 4), ((9, 9), (3, 3), 4096)],
)
def test_another_device_is_not_waited_for(size, block, samples, shared, channels_last, monkeypatch):
    """Device "meta" has no values to read and no memory to copy to; else it is treated as a GPU is."""
    if channels_last and len(size) == 1:
        pytest.skip("no such layout")
    blocks = some_blocks((samples, 5), size, block, shared)
    device = torch.device("meta")
    key, x = torch.zeros((), dtype=torch.int64, device=device), torch.empty(*blocks.lead, *size, device=device)
    table = table_for(blocks, 0.5)
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a list is copied to the device"))
    with NothingCrosses():
        seeds = drawing.draw_seeds(key, blocks, table)
        sparse.apply_masked(x, torch.empty_like(x), seeds, blocks, None)
        sparse.dropped_mask(seeds, blocks, device, channels_last)


@pytest.mark.parametrize("strides", [(1000, 400, 9, 1), (1000, 1, 45, 5)])
def test_the_steps_of_a_cover_written_out_are_its_offsets(strides):
    covered = sparse.cover(torch.arange(4), some_blocks((2, 3), (9, 9), (3, 4)), strides)
    offsets = torch.zeros(1, dtype=torch.int64)
    for extent, stride in reversed(covered.steps):
        offsets = (offsets.unsqueeze(-1) + torch.arange(extent) * stride).flatten()
    assert offsets.tolist() == list(covered.offsets)


def test_what_a_dropped_unit_held_is_gone_on_other_devices():
    blocks = some_blocks()
    seeds, x = draw(blocks, 0.5), torch.full((8, 16, 28, 28), float("nan"))
    out = torch.empty_like(x)
    sparse.apply_masked(x, out, seeds, blocks, None)
    assert torch.equal(out == 0, sparse.dropped_mask(seeds, blocks, CPU))


@pytest.mark.parametrize("shared", [(), (0,), (1,), (0, 1)])
def test_parts_of_shared_masks(shared, monkeypatch):
    blocks = some_blocks(shared=shared)
    seeds, x = draw(blocks), torch.randn(8, 16, 28, 28)
    whole, parts = torch.empty_like(x), torch.empty_like(x)
    sparse.apply_seeds(x, whole, seeds, blocks)
    monkeypatch.setattr(sparse, "BYTES_AT_ONCE", 100)
    sparse.apply_seeds(x, parts, seeds, blocks)
    assert torch.equal(parts, whole)


def test_many_blocks_element_by_element():
    blocks = some_blocks((64, 64), (14, 14), (5, 5))
    seeds = draw(blocks, 0.5)
    assert len(seeds) > 2048
    x = torch.rand(64, 64, 14, 14).add(1).to(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    sparse.apply_seeds(x, out, seeds, blocks)
    assert torch.equal(out == 0, sparse.dropped_mask(seeds, blocks, CPU))
