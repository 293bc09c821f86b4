"""The numbers of the kernel that draws; what they lead to is tested with the kernel."""

import math
import struct

import pytest

from torch_dropblock.backends.triton import plan as triton_plan
from torch_dropblock.core import geometry
from torch_dropblock.core.seeds import Blocks


def test_a_division_is_a_multiplication():
    numbers = [0, 1, 2, 1000, 2**30, 2**30 + 2**16, 2**31 - 1]
    for divisor in [*range(1, 300), 2**16 + 1, 2**29 - 1, 2**29, 2**30 - 1]:
        packed = triton_plan.reciprocal(divisor)
        assert 2**32 < packed < 2**63, "an int64 to Triton, whatever the divisor"
        shift, factor = (packed >> 32) - 1, packed & 0xFFFFFFFF
        near = [k * divisor + d for k in (1, 2, 2**31 // divisor - 1) for d in (-1, 0, 1)]
        for number in filter(lambda n: 0 <= n < 2**31, numbers + near):
            assert 2 * number * factor >> 32 >> shift == number // divisor


def test_the_length_of_a_stream_is_that_of_24_seeds():
    for size, block in [((28, 28), (7, 7)), ((7, 7), (7, 7)), ((64, 64), (3, 3)), ((6, 8, 7), (3, 3, 3))]:
        gamma = geometry.gamma(size, block, 0.9, "exact")
        assert 20 < triton_plan.stream_length(size, block) * gamma < 30
    assert triton_plan.stream_length((1 << 20,), (1,)) <= 1 << 16


@pytest.mark.parametrize("words", [64, 1024])
@pytest.mark.parametrize(
    ("size", "block"),
    [((28, 28), (7, 7)), ((100,), (9,)), ((9, 8, 7), (9, 1, 7)), ((1, 1), (1, 1)), ((900, 900), (300, 3))],
)
def test_the_programs_share_out_all_words_and_see_far_enough_back(size, block, words):
    for planes in (1, 7, 1000):
        blocks = Blocks((planes,), size, block, 0.01)
        plan = triton_plan.plan_of(blocks, words)
        length, units, halo, own, chunks, *_ = plan.numbers
        assert 64 * (length - 1) < units <= 64 * length
        assert plan.programs * own >= length > (plan.programs - 1) * own
        assert own + halo == chunks * plan.chunk == plan.scratch // plan.programs
        reach = sum((b - 1) * math.prod(size[i + 1 :]) for i, b in enumerate(block[:-1]))
        assert 64 * (halo - 1) >= reach
        assert own >= (3 if plan.programs >= triton_plan.ENOUGH_PROGRAMS else 0.25) * halo
        assert plan.one_chunk == (chunks == 1)
        assert triton_plan.plan_of(Blocks((planes,), size, block, 0.02), words) is plan, "whatever γ is"


def test_units_are_counted_in_64_bits_where_a_stream_goes_that_far():
    assert not triton_plan.plan_of(Blocks((64, 256), (28, 28), (7, 7), 0.01), 1024).wide
    assert triton_plan.plan_of(Blocks((300,), (512, 512, 512), (512, 512, 512), 0.01), 1024).wide


@pytest.mark.parametrize("gamma", [0.0, 1e-300, 1e-12, 0.003, 0.5, 1 - 1e-12, 1.0])
def test_the_mean_gap_in_two_numbers(gamma):
    two = triton_plan.gap_in_two(gamma)
    assert all(number == struct.unpack("f", struct.pack("f", number))[0] for number in two)
    expected = 0.0 if gamma == 1.0 else min(-1 / math.log1p(-gamma), 1e30) if gamma else 1e30
    assert triton_plan.mean_gap_of(gamma) == pytest.approx(expected, rel=2**-44)


def test_inverses_are_bits():
    for divisor in (1, 3, 49, 2**30):
        assert struct.unpack("d", struct.pack("q", triton_plan.inverse(divisor))) == (1 / divisor,)


def test_large_blocks_on_a_large_map_still_make_work_for_many_programs():
    for block in ((7, 7), (32, 32), (128, 128)):
        plan = triton_plan.plan_of(Blocks((64, 8), (256, 256), block, 0.01), 512)
        assert plan.programs >= triton_plan.ENOUGH_PROGRAMS
    assert triton_plan.plan_of(Blocks((1, 8), (1024, 1024), (128, 128), 0.01), 512).programs > 100


def test_units_are_counted_in_64_bits_from_2_to_the_31_on():
    side = 8_892_336  # 242 planes pass 2^31, 241 do not
    assert triton_plan.plan_of(Blocks((1,), (side,), (side,), 0.01), 1024).wide
    assert triton_plan.plan_of(Blocks((4,), (256,) * 3, (256,) * 3, 0.01), 1024).wide
