"""The sparse path gives what the oracle gives for the same seeds, bit for bit, for any shape, stride and dtype."""

from contextlib import nullcontext

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_dropblock.backends import native, sparse
from torch_dropblock.core import reference
from torch_dropblock.core import seeds as drawing
from torch_dropblock.core.geometry import clamp
from torch_dropblock.core.seeds import Blocks
from torch_dropblock.layer.eager import ApplyBlocks, Scale

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@st.composite
def strided_tensors(draw, shape, dtype):
    """A tensor of this shape whose axes lie in memory in any order, with gaps, or repeated."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 2)) for _ in shape]
    offset = draw(st.integers(0, 2))
    repeated = draw(st.sets(st.integers(0, len(shape) - 1), max_size=1) | st.just(set()))
    memory_shape = [1 if axis in repeated else shape[axis] * steps[axis] for axis in order]
    memory = torch.randn(offset + torch.Size(memory_shape).numel()).to(dtype)
    back = [order.index(axis) for axis in range(len(shape))]
    tensor = memory[offset:].view(memory_shape).permute(back)
    tensor = tensor[tuple(slice(None, None, 1 if axis in repeated else step) for axis, step in enumerate(steps))]
    return tensor.expand(shape)


@st.composite
def cases(draw):
    dims = draw(st.integers(1, 3))
    lead = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))
    size = tuple(draw(st.integers(1, (40, 14, 7)[dims - 1])) for _ in range(dims))
    block = clamp(size, tuple(draw(st.integers(1, s + 2)) for s in size))
    shared = draw(st.sets(st.integers(0, len(lead) - 1)))
    gamma = draw(st.sampled_from([0.0, 0.01, 0.1, 0.4, 1.0]))
    input = draw(strided_tensors((*lead, *size), draw(st.sampled_from(DTYPES))))
    return input, Blocks(lead, size, block, gamma, tuple(sorted(shared))), draw(st.integers(-(2**63), 2**63 - 1))


# the native library where it was built, and plain PyTorch
PATHS = (nullcontext, native.left_out)


def oracle(input, blocks, seeds):
    """Through dense seeds and `reference`, with the leading dimensions made the oracle's two."""
    dense = torch.zeros(blocks.positions, dtype=torch.bool).index_fill(0, seeds, True)
    kept = reference.kept_mask(dense.view(1, -1, *blocks.valid), blocks.block)
    return reference.drop_block(input, kept.view(*blocks.own_lead, *blocks.size).expand(input.shape))


@given(case=cases())
@settings(max_examples=400, deadline=None)
def test_forward_and_backward(case):
    input, blocks, number = case
    rng_seed = torch.tensor(number)
    expected = oracle(input, blocks, drawing.draw_seeds(rng_seed, blocks))

    gradient = torch.randn(input.shape).to(input.dtype)
    for path in PATHS:
        with path():
            x = input.detach().requires_grad_()
            output = ApplyBlocks.apply(x, rng_seed, blocks, Scale(), False)
            output.backward(gradient)
        assert torch.equal(output, expected)
        assert output.stride() == torch.empty_like(input).stride()
        assert torch.equal(x.grad, oracle(gradient, blocks, drawing.draw_seeds(rng_seed, blocks)))

    masked = torch.empty_like(input)
    draw = drawing.draw_fixed_number if 0 < blocks.gamma < 1 else drawing.draw_seeds
    sparse.apply_masked(input, masked, draw(rng_seed, blocks), blocks, None)
    assert torch.equal(masked, expected), "the way of other devices"


@given(case=cases())
@settings(max_examples=200, deadline=None)
def test_inplace_leaves_the_memory_around_it_alone(case):
    input, blocks, number = case
    if 0 in [stride for stride, n in zip(input.stride(), input.shape, strict=True) if n > 1]:
        input = input.clone()  # repeated memory is refused before it gets here
    rng_seed = torch.tensor(number)
    expected = oracle(input, blocks, drawing.draw_seeds(rng_seed, blocks))
    storage = input.untyped_storage()
    memory = torch.empty(0, dtype=input.dtype).set_(storage)
    before = memory.clone()
    touched = torch.zeros_like(memory, dtype=torch.bool)
    touched.as_strided(input.shape, input.stride(), input.storage_offset()).fill_(True)

    for path in PATHS:
        memory.copy_(before)
        with path():
            assert ApplyBlocks.apply(input, rng_seed, blocks, Scale(), True) is input
        assert torch.equal(input, expected)
        assert torch.equal(memory[~touched], before[~touched])
