"""Where blocks may fall, and the streams that their seeds are cut into."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from torch_dropblock.core.blocks import LONGEST, Blocks
from torch_dropblock.core.seeds import draw_seeds, table_of


@st.composite
def some_blocks(draw):
    dims = draw(st.integers(1, 3))
    side = (100_000, 300, 45)[dims - 1]
    size = tuple(draw(st.integers(1, 12) | st.integers(1, side)) for _ in range(dims))
    lead = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=2)))
    block = tuple(draw(st.integers(1, s + 2) | st.integers(1, min(s, 7))) for s in size)
    return Blocks.of(lead, size, block, draw(st.booleans()))


def pieces(blocks):
    """The start and the end of each stream, as `Streams` says them."""
    count, length, per_group, group, _ = blocks.streams
    starts = [s // per_group * group + s % per_group * length for s in range(count)]
    ends = [min(start + length, (s // per_group + 1) * group) for s, start in enumerate(starts)]
    return starts, [min(end, blocks.positions) for end in ends]


@given(blocks=some_blocks())
@example(blocks=Blocks((4096,), (1, 1), (1, 1)))
@example(blocks=Blocks((3,), (1000, 1000), (999, 999)))
@example(blocks=Blocks((1,), (10**8,), (10**4,)))
@example(blocks=Blocks((2,), (300, 300), (1, 1)))
def test_streams_cut_the_positions_into_pieces_without_gap_or_overlap(blocks):
    streams = blocks.streams
    assert 1 <= streams.length <= LONGEST == 65535
    starts, ends = pieces(blocks)
    assert starts == [0, *ends[:-1]]
    assert ends[-1] == blocks.positions
    assert all(start < end for start, end in zip(starts, ends, strict=True)), "no stream is empty"
    plane = math.prod(blocks.valid)
    assert streams.group == streams.planes * plane, "a group is whole planes"
    assert streams.planes == 1 or streams.per_group == 1


@given(blocks=some_blocks(), more=st.integers(1, 5))
def test_one_table_serves_any_number_of_planes(blocks, more):
    for shared in (False, True):
        assert blocks.batched(more, shared=shared).streams[1:] == blocks.streams[1:]
    assert blocks.flat.streams == blocks.streams


def test_more_planes_leave_the_masks_of_the_first_ones_as_they_are():
    for size, block in (((7, 7), (3, 3)), ((28, 28), (7, 7)), ((90, 90), (1, 2))):
        few, many = (Blocks((planes,), size, block) for planes in (5, 12))
        table = table_of(size, block, few.streams.length, 0.7, "exact")
        for key in range(10):
            seeds = draw_seeds(key, many, table)
            assert torch.equal(draw_seeds(key, few, table), seeds[seeds < few.positions])


@pytest.mark.parametrize("size", [(28, 28), (56, 56), (224, 224), (100,), (16, 28, 28)])
def test_a_stream_has_about_a_dozen_seeds(size):
    """Of the usual block and keep_prob, where planes are large enough."""
    blocks = Blocks.of((32, 64), size, (7,) * len(size), False)
    table = table_of(size, blocks.block, blocks.streams.length, 0.9, "exact")
    expected = table[0].item() * (1 - table[1:]).sum().item()
    assert 6 < expected < 20


def test_what_blocks_know():
    blocks = Blocks.of((4, 6), (9, 11), (3, 20), True)
    assert blocks.block == (3, 11), "clamped to the map"
    assert blocks.valid == (7, 1)
    assert blocks.own_lead == (4, 1)
    assert (blocks.planes, blocks.positions, blocks.units) == (4, 28, 4 * 99)
    assert blocks.flat == Blocks((4,), (9, 11), (3, 11))
    assert Blocks.of((4, 6), (9, 11), (3, 20), True) is blocks
    assert Blocks.of((6,), (9, 11), (3, 3), True).own_lead == (1,), "channels without samples"


@pytest.mark.parametrize(("shared", "own_lead"), [(True, (1, 4, 1)), (False, (5, 4, 1))])
def test_a_batch_of_blocks(shared, own_lead):
    blocks = Blocks.of((4, 6), (9, 11), (3, 3), True).batched(5, shared=shared)
    assert blocks.lead == (5, 4, 6)
    assert blocks.own_lead == own_lead


def test_what_a_backend_keeps_makes_no_difference():
    blocks, other = Blocks((2,), (9,), (3,)), Blocks((2,), (9,), (3,))
    blocks.cache["of a test"] = 1
    assert blocks == other
    assert hash(blocks) == hash(other)
    assert not other.cache
