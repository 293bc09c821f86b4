"""The native library and the pure PyTorch path make the same bits of the same key."""

import ast
import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_dropblock import drop_block1d, drop_block2d, drop_block3d
from torch_dropblock.backends import native, packed, reference
from torch_dropblock.backends.sparse import CHANNELS_LAST
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.seeds import table_of

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason="the native library was not built")
FUNCTIONS = {1: drop_block1d, 2: drop_block2d, 3: drop_block3d}
SIZES = {
    1: [(1,), (2,), (31,), (64,), (1000,)],
    2: [(1, 1), (7, 7), (5, 70), (14, 14), (28, 28), (33, 129), (64, 65)],
    3: [(1, 1, 1), (4, 6, 5), (8, 8, 40)],
}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(function, x, gradient, **settings):
    """Output and gradient of a call."""
    leaf = x.clone().requires_grad_()
    output = function(leaf * 1 if settings.get("inplace") else leaf, **settings)
    output.backward(gradient)
    return output.detach(), leaf.grad


def compare(monkeypatch, function, x, gradient, **settings):
    served = []
    with monkeypatch.context() as patch:
        drop = native.drop
        patch.setattr(native, "drop", lambda *arguments: served.append(1) or drop(*arguments))
        mine = results(function, x, gradient, **settings)
        assert len(served) == 2, "forward and backward are not both served"
        with native.left_out():
            theirs = results(function, x, gradient, **settings)
        assert len(served) == 2
    for a, b in zip(mine, theirs, strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("dims", FUNCTIONS)
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.sweep)])
def test_outputs_and_gradients_are_the_same_bits(monkeypatch, threads, dims, dtype, channels_last, every):
    if channels_last and dims == 1:
        pytest.skip("there is no channels_last of one dimension")
    choose = random.Random(f"{dims} {dtype} {channels_last}").choice
    cases = list(itertools.product(SIZES[dims], [1e-3, 0.3, 0.9, 0.999, 1 - 1e-9], [False, True]))
    for size, keep_prob, share_channels in cases[::every]:
        shape = choose([(1, 1), (2, 3), (5, 16), (3, 67), (2, 130)]) + size
        x = 3 * torch.randn(shape, dtype=torch.float64).to(dtype)
        flat = x.view(-1)
        flat[torch.randint(len(flat), (5,))] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-40, 3e38]).to(dtype)
        gradient = torch.randn(shape, dtype=torch.float64).to(dtype)
        if channels_last:
            x, gradient = (t.to(memory_format=CHANNELS_LAST[dims + 2]) for t in (x, gradient))
        threads(choose([1, 2, 3, 5]))
        block = choose([1, 2, 3, 7, 40, tuple(choose([1, 3, 8]) for _ in size)])
        settings = {"block_size": block, "keep_prob": keep_prob, "share_channels": share_channels}
        compare(monkeypatch, FUNCTIONS[dims], x, gradient, **settings, inplace=choose([False, True]), key=len(flat))


@pytest.mark.parametrize("shape", [(16, 64, 28, 28), (8, 32, 56, 56), (32, 256, 7, 7)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_on_several_threads(monkeypatch, threads, shape, count):
    threads(count)
    x, gradient = torch.randn(2, *shape)
    compare(monkeypatch, drop_block2d, x, gradient, block_size=7, keep_prob=0.9, key=count)
    last = [t.to(memory_format=torch.channels_last) for t in (x, gradient)]
    compare(monkeypatch, drop_block2d, *last, block_size=7, keep_prob=0.9, key=count)


def some_blocks(lead=(4, 6), size=(28, 30), block=(3, 5), share_channels=False, keep_prob=0.8):
    blocks = Blocks.of(lead, size, block, share_channels)
    return blocks, table_of(size, blocks.block, blocks.streams.length, keep_prob, "exact")


@pytest.mark.parametrize(("order", "share_channels"), [("planes", False), ("planes", True), ("channels", False)])
@pytest.mark.parametrize(
    ("size", "block"), [((500,), 3), ((500,), 100), ((7, 7), 3), ((28, 28), 28), ((33, 129), 40), ((6, 5, 40), 3)]
)
def test_a_mask_is_the_oracles(threads, size, block, order, share_channels):
    for key, keep_prob in ((-1, 0.3), (2**63 - 1, 0.9)):
        blocks, table = some_blocks((3, 35), size, (block,) * len(size), share_channels, keep_prob)
        kept = reference.kept(key, blocks, table)
        units = kept.sum().item()
        for count in (1, 3):
            threads(count)
            words = torch.full(packed.shape(blocks.own_lead, size, order), 7, dtype=torch.int32)
            scale = native.draw_mask(words, order, torch.tensor(key), blocks, table)
            assert torch.equal(words, packed.pack(~kept, len(size), order))
            assert scale == (kept.numel() / units if units else 0.0)


def test_a_scale_is_counted_unless_it_is_given():
    blocks, table = some_blocks()
    x, output = torch.rand(2, 4, 6, 28, 30)
    scale = native.drop(x, output, 5, blocks, table)
    kept = reference.kept(5, blocks, table)
    assert scale == kept.numel() / kept.sum().item()
    assert native.drop(x, output, -5, blocks, table, 2.0) == 2.0
    assert torch.equal(output, torch.where(reference.kept(-5, blocks, table), x * 2, 0))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_scaled_as_pytorch_scales_it(dtype, channels_last):
    """Multiplied as a float32, then rounded once: subnormal numbers, ties, infinity and NaN too."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 16, 64, 64)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    blocks = Blocks.of((1, 16), (64, 64), (1, 1), False)
    nothing = torch.ones(128, dtype=torch.float64)
    for scale in (1.0, 10 / 9, 1.5, 1 / 3, 2.0, 3e-8, 5e4):
        output = torch.empty_like(x)
        native.drop(x, output, 5, blocks, nothing, scale)
        expected = (x.float() * torch.tensor(scale, dtype=torch.float32)).to(dtype)
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(output.signbit() & ~output.isnan(), expected.signbit() & ~expected.isnan())


def test_what_is_not_served():
    x = torch.empty(2, 3, 8, 8)
    blocks = Blocks((2, 3), (8, 8), (3, 3))
    for dtype in native.DTYPES:
        assert native.why_not(x.to(dtype), blocks) is None
    assert native.why_not(x.to(memory_format=torch.channels_last), blocks) is None
    assert native.why_not(x, Blocks((2, 3), (8, 8), (3, 3), shared=(1,))) is None
    assert "on meta" in native.why_not(x.to("meta"), blocks)
    assert "contiguous" in native.why_not(x.transpose(2, 3), blocks)
    assert "contiguous" in native.why_not(x[..., ::2], Blocks((2, 3), (8, 4), (3, 3)))
    assert "contiguous" in native.why_not(x, Blocks((2, 3), (8, 8), (3, 3), shared=(0,)))
    assert "fewer than 2^31" in native.why_not(x, Blocks((2**20, 2**8), (8, 8), (3, 3)))
    assert "int32" in native.why_not(x.int(), blocks)
    assert "plain" in native.why_not(x.as_subclass(torch.nn.Parameter), blocks)
    assert native.serves_mask(blocks)
    assert not native.serves_mask(Blocks((2**20, 2**8), (8, 8), (3, 3)))
    with native.left_out():
        assert native.why_not(x, blocks) == native.NOT_LOADED
        assert not native.serves_mask(blocks)
    assert native.why_not(x, blocks) is None


def test_memory_that_is_not_there_is_an_error(monkeypatch):
    class Nothing:
        def drop_block(self, *_):
            return -1.0

        drop_block_mask = drop_block

    blocks, table = some_blocks()
    x = torch.empty(4, 6, 28, 30)
    monkeypatch.setattr(native, "LIBRARY", Nothing())
    with pytest.raises(MemoryError, match="seeds"):
        native.drop(x, x, 5, blocks, table)
    with pytest.raises(MemoryError, match="seeds"):
        native.draw_mask(x, "planes", 5, blocks, table)


def test_a_library_of_another_version_is_left_out(monkeypatch):
    file = Path(native.LIBRARY._name)
    assert native.load(file).drop_block_interface() == native.INTERFACE
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    with pytest.raises(native.NotLoadedError, match="another version"):
        native.load(file)


def test_a_library_that_was_not_built_or_cannot_be_loaded_is_left_out(tmp_path):
    with pytest.raises(native.NotLoadedError, match="it was not built when the package was installed"):
        native.load(tmp_path / "_native.so")
    (tmp_path / "_native.so").write_bytes(b"no library")
    with pytest.raises(native.NotLoadedError, match="it cannot be loaded"):
        native.load(tmp_path / "_native.so")


@pytest.mark.parametrize("shared", [True, False], ids=["as PyTorch loads it", "as on aarch64"])
def test_there_is_one_openmp_library(shared):
    """The library runs on PyTorch's threads, not on a pool of its own; packages such as scikit-learn bring theirs."""
    code = f"""
import ctypes
from pathlib import Path

class Library(ctypes.CDLL):
    def __init__(self, name, mode=ctypes.DEFAULT_MODE, **options):
        alone = not {shared} and "global_deps" in str(name)  # PyTorch keeps its libraries to itself on aarch64
        super().__init__(name, ctypes.RTLD_LOCAL if alone else mode, **options)

ctypes.CDLL = Library
import torch
assert {shared} or not hasattr(ctypes.CDLL(None), "GOMP_parallel")
from torch_dropblock.backends import native

ctypes.CDLL(native.LIBRARY._name)
print({{line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(ast.literal_eval(done.stdout)) == 1, done.stdout
