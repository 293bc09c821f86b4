"""Drawing 32 channels to a word: the masks are those of the oracle, bit for bit; machine code."""

import pytest
import torch

from helpers.gpu_path import (
    DEVICE,
    GEOMETRY,
    MARKS,
    POINTERS,
    compiles,
    integers,
    launch,
    new_key,
    no_float_is_added,
    runs,
    some_blocks,
)
from torch_dropblock.backends import packed, reference
from torch_dropblock.backends.triton import plan as triton_plan
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.seeds import TABLE

triton_draw_channels = pytest.importorskip("torch_dropblock.backends.triton.draw_channels")
pytestmark = MARKS


@runs
@pytest.mark.parametrize(
    ("lead", "size", "block", "keep_prob"),
    [
        *((lead, *rest) for lead, *rest in GEOMETRY if len(lead) == 2),
        ((2, 300), (14, 14), (7, 7), 0.9),  # channels that several programs divide, the last with fewer
    ],
)
@pytest.mark.parametrize("enough_programs", [1, pytest.param(triton_plan.ENOUGH_PROGRAMS, marks=pytest.mark.sweep)])
def test_words_of_channels_have_the_mask_of_the_oracle(lead, size, block, keep_prob, enough_programs, monkeypatch):
    monkeypatch.setattr(triton_plan, "ENOUGH_PROGRAMS", enough_programs)
    Blocks.of.cache_clear()  # they keep plans
    key, (blocks, table) = new_key(), some_blocks(lead, size, block, keep_prob)
    words, scale = launch.draw_channels(key, blocks, table)
    kept = reference.kept(key.cpu(), blocks, table.cpu())
    assert torch.equal(packed.unpack(words, lead, size, "channels").cpu(), ~kept)
    assert scale.item() == kept.numel() / max(int(kept.sum()), 1)
    known = torch.ones_like(scale)
    assert torch.equal(launch.draw_channels(key, blocks, table, scale=known)[0], words)
    assert known.item() == 1
    bits = torch.arange(32, dtype=torch.int32, device=DEVICE)
    beyond = (words[..., -1:] >> bits & 1).flatten(0, -2).sum(0)[(lead[-1] - 1) % 32 + 1 :]
    assert not beyond.any(), "a bit of no channel"


def test_programs_divide_the_words_of_channels():
    """Small maps and large batches share what memory transfers at once; others make enough programs."""

    def width(lead, size):
        return triton_plan.channels_plan_of(Blocks.of(lead, size, (3, 3), False), 4096).width

    assert width((256, 1024), (14, 14)) == 8
    assert width((256, 2048), (7, 7)) == 8
    assert width((64, 512), (7, 7)) == 2
    assert width((8, 512), (7, 7)) == 1
    assert width((1024, 256), (28, 28)) == 4, "a program holds 4,096 words"
    assert triton_plan.channels_plan_of(Blocks.of((2, 3), (65, 65), (3, 3), False), 4096) is None
    few, many = (triton_plan.channels_plan_of(Blocks((n, 2), (2, 2), (1, 1)), 4096) for n in (2**23 - 1, 2**23))
    assert few.programs == 2**23 - 1
    assert many is None, "the count of programs would overflow"


@runs
@pytest.mark.parametrize("draw", [launch.draw, launch.draw_channels])
def test_a_copy_of_the_table_is_made_where_it_is_asked_for(draw):
    blocks, table = some_blocks((2, 5), (9, 9), (3, 3))
    copy = torch.full((TABLE + 1,), -1.0, dtype=torch.float64, device=DEVICE)
    draw(new_key(), blocks, table, copy=copy[:-1])
    assert torch.equal(copy[:-1], table)
    assert copy[-1] == -1


def variants():
    how = launch.Launch()
    for lead, count in [((64, 256), True), ((256, 1024), False)]:
        plan = triton_plan.channels_plan_of(Blocks.of(lead, (14, 14), (7, 7), False), how.words_of_channels)
        constants = {"COUNT": count, "COPY": count, "STREAMS": how.streams, "DRAWS": how.draws}
        constants |= {"WIDTH": plan.width, "CHUNK": plan.chunk, "TABLE": TABLE}
        pointers = {name: kind for name, kind in POINTERS.items() if name != "scratch"} | {"words": "*i32"}
        yield triton_draw_channels.draw_channels, pointers | integers(plan.parameters), constants, {"num_warps": 2}


test_every_kernel_compiles = compiles(variants, no_float_is_added)
