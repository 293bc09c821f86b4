"""Tests of the GPU path: on a GPU if there is one, otherwise in Triton's interpreter in a separate process."""

import warnings

import pytest
import torch

from torch_dropblock.backends import reference
from torch_dropblock.backends.triton import on
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.core.keys import draw_key
from torch_dropblock.core.seeds import table_of

triton = pytest.importorskip("triton", reason="Triton is not installed")
launch = pytest.importorskip("torch_dropblock.backends.triton.launch")

INTERPRETED = launch.INTERPRETED
HAS_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
runs = pytest.mark.skipif(not (INTERPRETED or HAS_GPU), reason="test_interpreted.py runs it in the interpreter")
MARKS = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*TRITON_DEFAULT_FP_FUSION.*"),  # it announces a change in a later Triton
    # the kernels rely on integer overflow and infinities, for which numpy warns
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
    # raised by the interpreter of older versions of Triton
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]


def on_gpu(function):
    """Mark a test that needs a device."""
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA GPU")(function))


# --- drawing -----------------------------------------------------------------------------------------------------


# ragged, planes smaller than a word, of many words, block = map, block 1, block larger than a word, long rows
GEOMETRY = [
    ((8, 16), (28, 28), (7, 7), 0.9),
    ((4, 6), (9, 11), (3, 4), 0.5),
    ((4, 6), (7, 7), (7, 7), 0.5),
    ((3, 5), (6, 8, 7), (3, 3, 3), 0.8),
    ((2, 3), (9, 10, 11), (9, 2, 10), 0.6),
    ((64,), (100,), (9,), 0.9),
    ((3, 7), (1000,), (200,), 0.8),
    ((2, 3), (40, 70), (20, 41), 0.7),
    ((2, 3), (31, 33), (3, 3), 1 - 1e-9),
    ((2, 65), (1, 1), (1, 1), 0.5),
    ((1, 2), (64, 64), (64, 1), 0.9),
    ((1, 1), (1, 2), (1, 1), 0.5),
    ((2, 3, 4), (6, 6), (2, 3), 0.8),
    # planes that make several streams, the last one shorter, and of the greatest length
    ((1, 1), (200, 300), (7, 7), 0.9),
    ((2, 3), (5000,), (3,), 0.8),
    ((1, 1), (400, 400), (60, 60), 0.9),
    # numbers of seeds that are the sum of several, and no seed at all
    ((2, 3), (5, 5), (1, 1), 0.1),
    ((2, 3), (9, 9), (3, 3), 1e-3),
    ((2, 3), (9, 9), (3, 3), 1.0),
]


def new_key():
    return draw_key(DEVICE, None)


def some_blocks(lead=(8, 16), size=(28, 28), block=(7, 7), keep_prob=0.9, shared=False, rate="exact"):
    """Return the blocks and their table on the device."""
    blocks = Blocks.of(lead, size, block, shared)
    return blocks, on(DEVICE, table_of(size, blocks.block, blocks.streams.length, keep_prob, rate))


def assert_is_that_of_the_oracle(mask, key, table):
    """Check that the mask equals the oracle's, and that the scale is its number of units over its units kept."""
    kept = reference.kept(key.cpu(), mask.blocks, table.cpu())
    assert torch.equal(mask.dense().cpu(), ~kept)
    assert mask.scale.item() == kept.numel() / max(int(kept.sum()), 1)


def assert_same(mine, expected):
    """Check for equal bits; in bfloat16 allow for the interpreter, which truncates where the hardware rounds."""
    if INTERPRETED and expected.dtype == torch.bfloat16:
        torch.testing.assert_close(mine, expected, rtol=2**-7, atol=0, equal_nan=True)
        assert torch.equal(mine == 0, expected == 0)
    else:
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)


# --- the compiler, without a GPU ---------------------------------------------------------------------------------


def integers(values):
    """Return the types that Triton gives to integers, from their names and values."""
    return {name: "i32" if -(2**31) <= value < 2**31 else "i64" for name, value in values.items()}


def compiled(capability, function, types, constants, options=None, sixteens=()):
    """Compile a kernel to machine code without a GPU, with Triton's compiler and its assembler.

    `types` and `constants` are by argument name; pointers and the arguments in `sixteens` are multiples of 16.
    """
    backends = pytest.importorskip("triton.backends.compiler")
    compiler = pytest.importorskip("triton.compiler")
    assert {*types, *constants} == {*function.arg_names}
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    known = {name for name, t in types.items() if t.startswith("*")} | set(sixteens)
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in known}
    source = compiler.ASTSource(function, signature, constants, aligned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(source, target=backends.GPUTarget("cuda", capability, 32), options=options)


def compiles(variants, check=lambda ptx, *variant: None):
    """Make a test that each of these kernels compiles to machine code for users' GPUs and passes a check."""

    @pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")
    @pytest.mark.parametrize("capability", [80, pytest.param(90, marks=pytest.mark.sweep)])
    def test(capability, monkeypatch, tmp_path):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        for variant in variants():
            built = compiled(capability, *variant)
            assert built.asm["cubin"]
            check(built.asm["ptx"], *variant)

    return test


# arguments of the kernels that draw
POINTERS = {"words": "*i64", "scratch": "*i64", "counted": "*i64", "scale": "*fp64", "key": "*i64"}
POINTERS |= {"table": "*fp64", "copy": "*fp64"}


def no_float_is_added(ptx, function, types, constants, options):
    """So none is fused; the scale is the one quotient, and a place is the high end of a product of 64 bits."""
    assert not any(f"{operation}." in line for line in lines_of(ptx, "f64") for operation in ("fma", "add", "sub"))
    divisions = [line.split()[0] for line in lines_of(ptx, "f64") if line.startswith(("div", "rcp"))]
    assert divisions == ["div.rn.f64"] * constants["COUNT"]
    words = [line.split()[-1] for line in lines_of(ptx, "shr.u64")]
    assert "17;" in words
    assert "47;" in words


def lines_of(ptx, word):
    return [line.strip() for line in ptx.splitlines() if word in line]
