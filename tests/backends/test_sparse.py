"""The sparse path piece by piece: where blocks lie in memory, what is counted, scaled and zeroed."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_dropblock.backends import sparse
from torch_dropblock.core import geometry, reference
from torch_dropblock.core import seeds as drawing
from torch_dropblock.core.rng import draw_rng_seed
from torch_dropblock.core.seeds import Blocks

CPU = torch.device("cpu")


def rng_seed():
    return draw_rng_seed(CPU, None)


def some_blocks(lead=(8, 16), size=(28, 28), block=(7, 7), keep_prob=0.9, shared=()):
    block = geometry.clamp(size, block)
    return Blocks(lead, size, block, geometry.gamma(size, block, keep_prob, "exact"), shared)


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
    blocks = some_blocks((4, 6), size, block, keep_prob=0.8, shared=shared)
    seeds = drawing.draw_seeds(rng_seed(), blocks)
    dense = torch.zeros(blocks.positions, dtype=torch.bool)
    dense[seeds] = True
    kept = reference.kept_mask(dense.view(*blocks.own_lead, *blocks.valid), block).expand(4, 6, *size)
    x = LAYOUTS[layout](torch.randn(4, 6, *size))

    assert torch.equal(sparse.dropped_mask(seeds, blocks, CPU).expand(4, 6, *size), ~kept)
    assert sparse.count_dropped(seeds, blocks.planes()) == sparse.dropped_mask(seeds, blocks, CPU).sum()
    out = torch.empty_like(x)
    scale = sparse.apply_blocks(x, out, seeds, blocks)
    assert torch.equal(out, reference.drop_block(x, kept))
    assert scale == (kept.numel() / kept.sum().item() if kept.any() else 0.0)
    masked = torch.empty_like(x)
    sparse.apply_masked(x, masked, drawing.draw_seeds(rng_seed(), replace(blocks, gamma=0.0)), blocks, None)
    assert torch.equal(masked, x)
    sparse.apply_masked(x, masked, seeds, blocks, None)
    assert torch.equal(masked, out)


def test_the_surplus_of_a_fixed_number_drops_nothing():
    seed, blocks = rng_seed(), some_blocks()
    seeds, fixed = drawing.draw_seeds(seed, blocks), drawing.draw_fixed_number(seed, blocks)
    assert torch.equal(sparse.dropped_mask(fixed, blocks, CPU), sparse.dropped_mask(seeds, blocks, CPU))


@pytest.mark.parametrize("at_once", [1, 100, 5000, 10**9])
@pytest.mark.parametrize("shape", [(8, 16, 28, 28), (1, 3, 40, 40), (5, 1, 9, 200), (1, 1, 7, 7)])
def test_working_on_parts_changes_nothing(monkeypatch, at_once, shape):
    blocks = some_blocks(shape[:2], shape[2:])
    seeds, x = drawing.draw_seeds(rng_seed(), blocks), torch.randn(shape)
    whole, parts, count = torch.empty_like(x), torch.empty_like(x), sparse.count_dropped(seeds, blocks.planes())
    sparse.apply_blocks(x, whole, seeds, blocks)
    monkeypatch.setattr(sparse, "BYTES_AT_ONCE", at_once)
    monkeypatch.setattr(sparse, "COUNTED_AT_ONCE", at_once)
    sparse.apply_blocks(x, parts, seeds, blocks)
    assert torch.equal(parts, whole)
    assert sparse.count_dropped(seeds, blocks.planes()) == count


@pytest.mark.parametrize("keep_prob", [0.0, 1e-9])
def test_counting_when_all_or_nearly_all_is_dropped(keep_prob):
    blocks = some_blocks(keep_prob=keep_prob)
    seeds = drawing.draw_seeds(rng_seed(), blocks)
    assert (
        sparse.count_dropped(seeds, blocks.planes())
        == sparse.dropped_mask(seeds, blocks, CPU).sum()
        > 0.99 * blocks.units
    )


class NothingCrosses(TorchDispatchMode):
    """Refuses what makes the host wait for another device: to read a value, and to copy what lies on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {
            tensor.device.type for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, torch.Tensor)
        }
        assert "cpu" not in devices, f"{func.name()} waits for the device"
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
    blocks = some_blocks((samples, 5), size, block, 0.5, shared)
    device = torch.device("meta")
    seed, x = torch.zeros((), dtype=torch.int64, device=device), torch.empty(*blocks.lead, *size, device=device)
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a list is copied to the device"))
    with NothingCrosses():
        seeds = drawing.draw_seeds(seed, blocks)
        sparse.apply_masked(x, torch.empty_like(x), seeds, blocks, None)
        sparse.dropped_mask(seeds, blocks, device, channels_last)


@pytest.mark.parametrize("strides", [(1000, 400, 9, 1), (1000, 1, 45, 5)])
def test_the_steps_of_a_cover_written_out_are_its_offsets(strides):
    covered = sparse.cover(torch.arange(4), some_blocks((2, 3), (9, 9), (3, 4), 0.5), strides)
    offsets = torch.zeros(1, dtype=torch.int64)
    for extent, stride in reversed(covered.steps):
        offsets = (offsets.unsqueeze(-1) + torch.arange(extent) * stride).flatten()
    assert offsets.tolist() == list(covered.offsets)


def test_what_a_dropped_unit_held_is_gone_on_other_devices():
    blocks = some_blocks(keep_prob=0.5)
    seeds, x = drawing.draw_seeds(3, blocks), torch.full((8, 16, 28, 28), float("nan"))
    out = torch.empty_like(x)
    sparse.apply_masked(x, out, seeds, blocks, None)
    assert torch.equal(out == 0, sparse.dropped_mask(seeds, blocks, CPU))


@pytest.mark.parametrize("shared", [(), (0,), (1,), (0, 1)])
def test_parts_of_shared_masks(shared, monkeypatch):
    blocks = some_blocks(shared=shared)
    seeds, x = drawing.draw_seeds(5, blocks), torch.randn(8, 16, 28, 28)
    whole, parts = torch.empty_like(x), torch.empty_like(x)
    sparse.apply_blocks(x, whole, seeds, blocks)
    monkeypatch.setattr(sparse, "BYTES_AT_ONCE", 100)
    sparse.apply_blocks(x, parts, seeds, blocks)
    assert torch.equal(parts, whole)


def test_many_blocks_element_by_element():
    blocks = some_blocks((64, 64), (14, 14), (5, 5), 0.5)
    seeds = drawing.draw_seeds(3, blocks)
    assert len(seeds) > 2048
    x = torch.rand(64, 64, 14, 14).add(1).to(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    sparse.apply_blocks(x, out, seeds, blocks)
    assert torch.equal(out == 0, sparse.dropped_mask(seeds, blocks, CPU))
