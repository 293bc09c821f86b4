"""The native library and the pure PyTorch path make the same bits of the same RNG seed."""

import ast
import itertools
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from torch_dropblock import drop_block1d, drop_block2d, drop_block3d
from torch_dropblock.backends import native, sparse
from torch_dropblock.backends.sparse import CHANNELS_LAST
from torch_dropblock.core import seeds as drawing
from torch_dropblock.core.rng import draw_rng_seed
from torch_dropblock.core.seeds import Blocks

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason="the native library was not built")
CPU = torch.device("cpu")
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
    torch.manual_seed(settings.pop("seed"))
    leaf = x.clone().requires_grad_()
    output = function(leaf * 1 if settings.get("inplace") else leaf, **settings)
    output.backward(gradient)
    return output.detach(), leaf.grad


def compare(monkeypatch, function, x, gradient, **settings):
    served = []
    with monkeypatch.context() as patch:
        drop = native.Plan.drop
        patch.setattr(native.Plan, "drop", lambda *arguments: served.append(1) or drop(*arguments))
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
def test_outputs_and_gradients_are_the_same_bits(monkeypatch, threads, dims, dtype, channels_last):
    if channels_last and dims == 1:
        pytest.skip("there is no channels_last of one dimension")
    choose = random.Random(f"{dims} {dtype} {channels_last}").choice
    for size, keep_prob, share_channels in itertools.product(
        SIZES[dims], [1e-3, 0.3, 0.9, 0.999, 1 - 1e-9], [False, True]
    ):
        shape = choose([(1, 1), (2, 3), (5, 16), (3, 67), (8, 130)]) + size
        x = 3 * torch.randn(shape, dtype=torch.float64).to(dtype)
        flat = x.view(-1)
        flat[torch.randint(len(flat), (5,))] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-40, 3e38]).to(dtype)
        gradient = torch.randn(shape, dtype=torch.float64).to(dtype)
        if channels_last:
            x, gradient = (t.to(memory_format=CHANNELS_LAST[dims + 2]) for t in (x, gradient))
        threads(choose([1, 2, 3, 5]))
        block = choose([1, 2, 3, 7, 40, tuple(choose([1, 3, 8]) for _ in size)])
        settings = {"block_size": block, "keep_prob": keep_prob, "share_channels": share_channels}
        compare(monkeypatch, FUNCTIONS[dims], x, gradient, **settings, inplace=choose([False, True]), seed=len(flat))


@pytest.mark.parametrize("shape", [(16, 64, 28, 28), (8, 32, 56, 56), (32, 256, 7, 7)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_on_several_threads(monkeypatch, threads, shape, count):
    threads(count)
    x, gradient = torch.randn(2, *shape)
    compare(monkeypatch, drop_block2d, x, gradient, block_size=7, keep_prob=0.9, seed=count)
    last = [t.to(memory_format=torch.channels_last) for t in (x, gradient)]
    compare(monkeypatch, drop_block2d, *last, block_size=7, keep_prob=0.9, seed=count)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the threads of a process are counted in /proc")
def test_a_new_thread_of_python_uses_as_many_threads_as_were_set(threads):
    x, started = torch.ones(16, 64, 28, 28), []

    def drop():
        before = len(os.listdir("/proc/self/task"))
        drop_block2d(x, 7)
        started.append(len(os.listdir("/proc/self/task")) - before)

    for count in (1, 3):
        threads(count)
        thread = threading.Thread(target=drop)
        thread.start()
        thread.join()
    assert started == [0, 2]


@pytest.mark.parametrize("gamma", [1e-7, 1e-4, 0.01, 0.3, 0.9, 0.99999])
def test_seeds_are_the_same(gamma):
    blocks = Blocks((40, 50), (28, 28), (3, 3), gamma)
    x = torch.empty(40, 50, 28, 28)
    plan = native.plan(x, x, blocks)
    for _ in range(20):
        rng_seed = draw_rng_seed(CPU, None)
        assert torch.equal(plan.draw_seeds(rng_seed).long(), drawing.draw_seeds(rng_seed, blocks))


def test_what_is_too_close_to_an_integer_is_drawn_by_pytorch(monkeypatch):
    blocks = Blocks((4, 5), (28, 28), (3, 3), 0.01)
    x, rng_seed = torch.empty(4, 5, 28, 28), torch.tensor(7)
    plan = native.plan(x, x, blocks)
    room = torch.empty(plan.layout.room, dtype=torch.int32)
    assert native.LIBRARY.drop_block_draw(plan.address, 7, 0.5, room.data_ptr(), len(room)) == -1
    assert native.LIBRARY.drop_block_draw(plan.address, 7, native.CLOSE, room.data_ptr(), 3) == -1  # no room
    monkeypatch.setattr(native, "CLOSE", 0.5)
    seeds = plan.draw_seeds(rng_seed)
    assert seeds.dtype == torch.int32
    assert torch.equal(seeds.long(), drawing.draw_seeds(rng_seed, blocks))
    x, mine, theirs = torch.randn(3, 4, 5, 28, 28)
    assert plan.drop(x, mine, rng_seed, None) == sparse.apply_blocks(x, theirs, seeds.long(), blocks)
    assert torch.equal(mine, theirs)


def test_what_is_not_served():
    x = torch.empty(2, 3, 8, 8)
    blocks = Blocks((2, 3), (8, 8), (3, 3), 0.1)
    assert native.plan(x, x, blocks) is not None
    assert native.plan(x.half(), x.half(), blocks) is None
    assert native.plan(x.transpose(2, 3), x, blocks) is None
    assert native.plan(x[..., ::2], x[..., ::2], Blocks((2, 3), (8, 4), (3, 3), 0.1)) is None
    assert native.plan(x, x, Blocks((2, 3), (8, 8), (3, 3), 0.1, shared=(0,))) is None
    assert native.plan(x, x, Blocks((2, 3), (8, 8), (3, 3), 1.0)) is None


def test_a_library_that_makes_something_else_is_left_out(monkeypatch):
    file = Path(native.LIBRARY._name)
    assert not isinstance(native._load(file), str)
    with monkeypatch.context() as patch:
        patch.setattr(native, "INTERFACE", native.INTERFACE + 1)
        assert native._load(file) == "it was built of another version of this package"
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw_seeds", lambda rng_seed, blocks: torch.tensor([1, 5, 9]))
        assert native._load(file) == "it does not draw what this version of PyTorch draws"
    with monkeypatch.context() as patch:
        patch.setattr(sparse, "apply_blocks", lambda input, out, seeds, blocks: (out.copy_(input), 1.0)[1])
        assert native._load(file) == "it does not draw what this version of PyTorch draws"


def test_a_library_that_was_not_built_or_cannot_be_loaded_is_left_out(tmp_path):
    assert native._load(tmp_path / "_native.so") == "it was not built when the package was installed"
    (tmp_path / "_native.so").write_bytes(b"no library")
    assert native._load(tmp_path / "_native.so").startswith("it cannot be loaded (")


def test_it_can_be_left_out_for_a_while():
    x = torch.empty(2, 3, 8, 8)
    blocks = Blocks((2, 3), (8, 8), (3, 3), 0.1)
    with native.left_out():
        assert native.plan(x, x, blocks) is None
    assert native.plan(x, x, blocks) is not None


def test_there_is_one_openmp_library():
    """The library runs on PyTorch's threads, not on a pool of its own; packages such as scikit-learn bring theirs."""
    code = """
import ctypes
from pathlib import Path
from torch_dropblock.backends import native

ctypes.CDLL(native.LIBRARY._name)
print({line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(ast.literal_eval(done.stdout)) == 1, done.stdout
