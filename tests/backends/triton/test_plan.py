"""The numbers of the kernel that draws; what they lead to is tested with the kernel."""

import math
import struct

import pytest

from torch_dropblock.backends.triton import plan as triton_plan
from torch_dropblock.core.blocks import Blocks


def test_a_division_is_a_multiplication():
    numbers = [0, 1, 2, 1000, 2**30, 2**30 + 2**16, 2**31 - 1]
    for divisor in [*range(1, 300), 2**16 + 1, 2**29 - 1, 2**29, 2**30 - 1]:
        packed = triton_plan.reciprocal(divisor)
        assert 2**32 < packed < 2**63, "an int64 to Triton, whatever the divisor"
        shift, factor = (packed >> 32) - 1, packed & 0xFFFFFFFF
        near = [k * divisor + d for k in (1, 2, 2**31 // divisor - 1) for d in (-1, 0, 1)]
        for number in filter(lambda n: 0 <= n < 2**31, numbers + near):
            assert 2 * number * factor >> 32 >> shift == number // divisor


@pytest.mark.parametrize("words", [64, 1024])
@pytest.mark.parametrize(
    ("size", "block"),
    [((28, 28), (7, 7)), ((100,), (9,)), ((9, 8, 7), (9, 1, 7)), ((1, 1), (1, 1)), ((900, 900), (300, 3))],
)
def test_the_programs_share_out_all_words_and_see_far_enough_back(size, block, words):
    for planes in (1, 7, 1000):
        blocks = Blocks((planes,), size, block)
        plan = triton_plan.plan_of(blocks, words)
        length, units, halo, own, chunks = (
            plan.parameters[name] for name in ("length", "units", "halo", "own", "chunks")
        )
        assert 64 * (length - 1) < units <= 64 * length
        assert plan.programs * own >= length > (plan.programs - 1) * own
        assert own + halo == chunks * plan.chunk == plan.scratch // plan.programs
        reach = sum((b - 1) * math.prod(size[i + 1 :]) for i, b in enumerate(block[:-1]))
        assert 64 * (halo - 1) >= reach
        assert own >= (3 if plan.programs >= triton_plan.ENOUGH_PROGRAMS else 0.25) * halo
        assert plan.one_chunk == (chunks == 1)
        assert triton_plan.plan_of(blocks, words) is plan


def test_units_are_counted_in_64_bits_where_a_stream_goes_that_far():
    assert not triton_plan.plan_of(Blocks((64, 256), (28, 28), (7, 7)), 1024).wide
    assert triton_plan.plan_of(Blocks((300,), (512, 512, 512), (512, 512, 512)), 1024).wide


def test_inverses_are_bits():
    for divisor in (1, 3, 49, 2**30):
        assert struct.unpack("d", struct.pack("q", triton_plan.inverse(divisor))) == (1 / divisor,)


def test_large_blocks_on_a_large_map_still_make_work_for_many_programs():
    for block in ((7, 7), (32, 32), (128, 128)):
        plan = triton_plan.plan_of(Blocks((64, 8), (256, 256), block), 512)
        assert plan.programs >= triton_plan.ENOUGH_PROGRAMS
    assert triton_plan.plan_of(Blocks((1, 8), (1024, 1024), (128, 128)), 512).programs > 100


def test_units_are_counted_in_64_bits_from_2_to_the_31_on():
    """Counted from the first unit of a group, here of 120 planes, and two planes beyond."""
    for side, wide in [(16_000_000, False), (18_000_000, True)]:
        assert triton_plan.plan_of(Blocks((1,), (side,), (side,)), 1024).wide == wide


def test_the_parameters_are_those_of_the_kernel_in_their_order():
    triton_draw = pytest.importorskip("torch_dropblock.backends.triton.draw")
    plan = triton_plan.plan_of(Blocks((3, 5), (28, 28), (7, 7)), 512)
    first = triton_draw.draw.arg_names.index("length")
    assert list(plan.parameters) == triton_draw.draw.arg_names[first : first + len(plan.parameters)]


@pytest.mark.parametrize(
    ("size", "block"), [((28, 28), (7, 7)), ((7, 7), (7, 7)), ((1000, 1000), (3, 3)), ((300,), (200,))]
)
def test_groups_and_streams_are_those_of_the_blocks(size, block):
    blocks = Blocks((7,), size, block)
    numbers, streams = triton_plan.plan_of(blocks, 512).parameters, blocks.streams
    assert numbers["group"] == numbers["group_planes"] * numbers["plane_positions"] == streams.group
    assert numbers["per_group"] * numbers["stream_length"] >= numbers["group"]
    assert numbers["positions"] == blocks.planes * numbers["plane_positions"]
