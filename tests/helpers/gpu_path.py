"""The GPU path in the tests: on a GPU where there is one, and else in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from torch_dropblock.core import geometry, reference
from torch_dropblock.core.rng import draw_rng_seed
from torch_dropblock.core.seeds import Blocks

triton = pytest.importorskip("triton", reason="Triton is not installed")
launch = pytest.importorskip("torch_dropblock.backends.triton.launch")

INTERPRETED = launch.INTERPRETED
HAS_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
runs = pytest.mark.skipif(not (INTERPRETED or HAS_GPU), reason="runs in the interpreter: test_in_the_interpreter")
MARKS = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*TRITON_DEFAULT_FP_FUSION.*"),  # it says what a later Triton will do
    # numpy says when an integer wraps around and when there is an infinity, of which the kernels make use
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
    # what the interpreter of older versions of Triton does
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]


def on_gpu(function):
    """A test that needs a device."""
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA GPU")(function))


def interpret(file):
    """Run the tests of a file again with TRITON_INTERPRET=1."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not gpu", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def compiled(capability, function, types, constants, options, sixteens):
    """The kernel as machine code, by Triton's compiler and the assembler that it brings, without a GPU."""
    backends = pytest.importorskip("triton.backends.compiler")
    compiler = pytest.importorskip("triton.compiler")
    left = iter(types)
    signature = {name: "constexpr" if name in constants else next(left) for name in function.arg_names}
    assert next(left, None) is None
    known = {name for name, t in signature.items() if t.startswith("*")} | set(sixteens)
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in known}
    source = compiler.ASTSource(function, signature, constants, aligned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(source, target=backends.GPUTarget("cuda", capability, 32), options=options)


def compiles(variants):
    """A test that each kernel of these becomes machine code for the GPUs of our users."""

    @pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")
    @pytest.mark.parametrize("capability", [80, 90])
    def test(capability, monkeypatch, tmp_path):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        built = [compiled(capability, *variant).asm["cubin"] for variant in variants()]
        assert built
        assert all(built)

    return test


def rng_seed():
    return draw_rng_seed(DEVICE, None)


def some_blocks(lead=(8, 16), size=(28, 28), block=(7, 7), keep_prob=0.9, shared=(), rate="exact"):
    block = geometry.clamp(size, block)
    return Blocks(lead, size, block, geometry.gamma(size, block, keep_prob, rate), shared)


def oracle_kept(mask):
    """The oracle's mask for the seeds that the kernel says it drew."""
    blocks = mask.blocks
    dense = torch.zeros(blocks.positions, dtype=torch.bool)
    dense[mask.seeds().cpu()] = True
    kept = reference.kept_mask(dense.view(1, -1, *blocks.valid), blocks.block)
    return kept.view(*blocks.own_lead, *blocks.size)


def assert_same(mine, expected):
    """The same bits; in bfloat16 the interpreter cuts off what the hardware rounds."""
    if INTERPRETED and expected.dtype == torch.bfloat16:
        torch.testing.assert_close(mine, expected, rtol=2**-7, atol=0, equal_nan=True)
        assert torch.equal(mine == 0, expected == 0)
    else:
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)
