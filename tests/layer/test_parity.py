"""One key, one mask: every backend gives the oracle's bits, whatever the mode, shape, strides, dtype and threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.func import vmap

from torch_dropblock import drop_block1d, drop_block2d, drop_block3d, use_backend
from torch_dropblock.backends import native, sparse
from torch_dropblock.core import reference
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.geometry import clamp
from torch_dropblock.core.seeds import draw_seeds, table_of
from torch_dropblock.layer.eager import ApplyBlocks, Call

DROP_BLOCK = {1: drop_block1d, 2: drop_block2d, 3: drop_block3d}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NAMES = ["sparse", "reference", *(["native"] if native.LIBRARY else [])]
KEYS = [0, -1, 2**63 - 1, 20181030]
BLOCK = (5, 3)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]


def kept_by(key, blocks, keep_prob):
    """The oracle's mask, of the shape of the input."""
    table = table_of(blocks.size, blocks.block, blocks.streams.length, keep_prob, "exact")
    if table is None:
        return torch.zeros(*blocks.lead, *blocks.size, dtype=torch.bool)
    kept = reference.kept_mask(reference.draw_seeds(key, blocks, table), blocks.block)
    return kept.view(*blocks.own_lead, *blocks.size).expand(*blocks.lead, *blocks.size)


def kept_of(key, x, share_channels=False, keep_prob=0.8):
    return kept_by(key, Blocks.of(tuple(x.shape[:-2]), tuple(x.shape[-2:]), BLOCK, share_channels), keep_prob)


# --- layouts and dtypes, each with each --------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "permuted": lambda t: t.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
    "strided": lambda t: torch.zeros(*(2 * n for n in t.shape), dtype=t.dtype)[
        tuple(slice(None, 2 * n, 2) for n in t.shape)
    ].copy_(t),
    "expanded": lambda t: t[:1, :, :1].expand_as(t),
    "unbatched": lambda t: t[0],
}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("name", ["auto", *NAMES])
def test_eager_mode(name, share_channels, dtype, layout):
    x, gradient = (layout(torch.randn(4, 6, 20, 17).to(dtype)) for _ in range(2))
    for key in KEYS:
        kept = kept_of(key, x, share_channels)
        leaf = x.detach().requires_grad_()
        written = x.clone()
        try:
            with use_backend(name):
                y = drop_block2d(leaf, BLOCK, keep_prob=0.8, share_channels=share_channels, key=key)
                again = drop_block2d(
                    written, BLOCK, keep_prob=0.8, share_channels=share_channels, key=key, inplace=True
                )
        except ValueError:
            if (
                name != "native"
                or native.why_not(x, Blocks.of(x.shape[:-2], x.shape[-2:], BLOCK, share_channels)) is None
            ):
                raise
            return  # a layout that the library does not serve
        assert torch.equal(y, reference.drop_block(x, kept))
        assert again is written
        assert torch.equal(written, y)
        assert y.stride() == torch.empty_like(x).stride()
        y.backward(gradient)
        assert torch.equal(leaf.grad, reference.drop_block(gradient, kept))
        assert leaf.grad.dtype == dtype


@pytest.mark.parametrize(
    ("name", "share_channels"),
    [
        *((name, name == "native") for name in NAMES),
        *(pytest.param(name, name != "native", marks=pytest.mark.sweep) for name in NAMES),
    ],
)
def test_compiled_code(name, share_channels):
    """With one compilation for each layout and dtype; keys are data."""
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def function(x, key):
        return drop_block2d(x, BLOCK, keep_prob=0.8, share_channels=share_channels, key=key)

    for layout, dtype in zip(("contiguous", "channels_last", "permuted", "unbatched"), DTYPES, strict=True):
        x, gradient = (LAYOUTS[layout](torch.randn(4, 6, 20, 17).to(dtype)) for _ in range(2))
        for key in KEYS:
            leaf, kept = x.clone().requires_grad_(), kept_of(key, x, share_channels)
            with use_backend(name):
                y = function(leaf, torch.tensor(key))
            assert torch.equal(y, reference.drop_block(x, kept))
            assert y.stride() == x.stride() or layout == "permuted", "its memory format is kept"
            y.backward(gradient)
            assert torch.equal(leaf.grad, reference.drop_block(gradient, kept))
    torch._dynamo.reset()


@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_transforms(name, share_channels, dtype):
    """Forward mode, and both kinds of `vmap`: of one mask, and of masks of more planes."""

    def drop(x):
        return drop_block2d(x, BLOCK, keep_prob=0.8, share_channels=share_channels, key=key)

    x, tangent = torch.randn(2, 4, 6, 20, 17).to(dtype)
    several = torch.randn(3, 4, 6, 20, 17).to(dtype)
    for key in KEYS:
        kept = kept_of(key, x, share_channels)
        with use_backend("sparse" if name == "native" else name), forward_ad.dual_level():
            value, derivative = forward_ad.unpack_dual(drop(forward_ad.make_dual(x, tangent)))
        assert torch.equal(value, reference.drop_block(x, kept))
        assert torch.equal(derivative, reference.drop_block(tangent, kept))
        for randomness in ("same", "different", "error"):
            with use_backend("auto" if name == "native" else name):
                mapped = vmap(drop, randomness=randomness)(several)
            assert torch.equal(mapped, reference.drop_block(several, kept.expand_as(several))), "the key is one for all"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(16, 64, 28, 28), (8, 32, 56, 56), (64, 256, 7, 7), (2, 3, 300, 200)], ids=str)
def test_any_number_of_threads(name, shape):
    x, threads = torch.rand(shape).add(1), torch.get_num_threads()
    kept = kept_of(7, x)
    last = x.to(memory_format=torch.channels_last)
    try:
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            with use_backend(name):
                for input in (x, last):
                    assert torch.equal(drop_block2d(input, BLOCK, keep_prob=0.8, key=7) != 0, kept)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep_prob", [0.0, 1e-300, 1 - 2**-53, 1.0])
def test_all_or_nothing(name, keep_prob, dtype):
    x = torch.full((4, 6, 20, 17), 3.0, dtype=dtype, requires_grad=True)
    with use_backend(name):
        for key in KEYS:
            y = drop_block2d(x, BLOCK, keep_prob=keep_prob, key=key)
            (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 3.0)) if y is not x else (x,)
            for tensor in (y, gradient):
                assert torch.equal(tensor, x if keep_prob > 0.5 else torch.zeros_like(x))


# --- any shape ---------------------------------------------------------------------------------------------------


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
    size = tuple(draw(st.integers(1, (400, 30, 7)[dims - 1])) for _ in range(dims))
    block = clamp(size, tuple(draw(st.integers(1, s + 2)) for s in size))
    shared = tuple(sorted(draw(st.sets(st.integers(0, len(lead) - 1)))))
    input = draw(strided_tensors((*lead, *size), draw(st.sampled_from(DTYPES))))
    keep_prob = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999]))
    return input, Blocks(lead, size, block, shared), keep_prob, draw(st.integers(-(2**63), 2**63 - 1))


def call_of(blocks, keep_prob, asked):
    return Call(blocks, table_of(blocks.size, blocks.block, blocks.streams.length, keep_prob, "exact"), asked)


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_forward_and_backward_of_any_tensor(case):
    input, blocks, keep_prob, key = case
    kept = kept_by(key, blocks, keep_prob)
    expected = reference.drop_block(input, kept)
    gradient = torch.randn(input.shape).to(input.dtype)
    for asked in ("auto", "sparse"):
        x = input.detach().requires_grad_()
        output = ApplyBlocks.apply(x, key, call_of(blocks, keep_prob, asked), False)
        output.backward(gradient)
        assert torch.equal(output, expected)
        assert output.stride() == torch.empty_like(input).stride()
        assert torch.equal(x.grad, reference.drop_block(gradient, kept))
    table = call_of(blocks, keep_prob, "auto").table
    if table is not None:
        masked = torch.empty_like(input)
        sparse.apply_masked(input, masked, draw_seeds(key, blocks, table), blocks, None)
        assert torch.equal(masked, expected), "the way of other devices"


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_inplace_leaves_the_memory_around_it_alone(case):
    input, blocks, keep_prob, key = case
    if 0 in [stride for stride, n in zip(input.stride(), input.shape, strict=True) if n > 1]:
        input = input.clone()  # repeated memory is refused before it gets here
    expected = reference.drop_block(input, kept_by(key, blocks, keep_prob))
    memory = torch.empty(0, dtype=input.dtype).set_(input.untyped_storage())
    before = memory.clone()
    touched = torch.zeros_like(memory, dtype=torch.bool)
    touched.as_strided(input.shape, input.stride(), input.storage_offset()).fill_(True)
    for asked in ("auto", "sparse", "reference"):
        memory.copy_(before)
        assert ApplyBlocks.apply(input, key, call_of(blocks, keep_prob, asked), True) is input
        assert torch.equal(input, expected)
        assert torch.equal(memory[~touched], before[~touched])


@given(
    dims=st.integers(1, 3),
    data=st.data(),
    key=st.integers(-(2**63), 2**64 - 1),
    share_channels=st.booleans(),
    keep_prob=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_public_functions_make_the_mask_of_the_oracle(dims, data, key, share_channels, keep_prob):
    lead = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=2)))
    size = tuple(data.draw(st.integers(1, (300, 20, 7)[dims - 1])) for _ in range(dims))
    block = tuple(data.draw(st.integers(1, s + 2)) for s in size)
    kept = torch.ones(*lead, *size, dtype=torch.bool)
    if keep_prob < 1:
        kept = kept_by(key, Blocks.of(lead, size, block, share_channels), keep_prob)
    for name in NAMES:
        with use_backend(name):
            y = DROP_BLOCK[dims](
                torch.ones(*lead, *size), block, keep_prob=keep_prob, share_channels=share_channels, key=key
            )
        assert torch.equal(y != 0, kept)
