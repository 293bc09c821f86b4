"""The GPU kernel: on a GPU where there is one, and else in Triton's interpreter, in a process of its own.

`test_in_the_interpreter` runs this file again with TRITON_INTERPRET=1. The tests with the mark `gpu` need a device.
"""

import itertools
import math
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch._inductor.utils import run_fw_bw_and_get_code
from torch.autograd import forward_ad
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from torch_dropblock import (
    DropBlock2d,
    compiled,
    drop_block1d,
    drop_block2d,
    drop_block3d,
    geometry,
    keep_rate_map,
    reference,
    seed_probability,
    use_backend,
)
from torch_dropblock.autograd import ApplyBlocks, Scale
from torch_dropblock.rng import draw_rng_seed
from torch_dropblock.sparse import CHANNELS_LAST, Blocks

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")
kernel = pytest.importorskip("torch_dropblock.triton_kernel")

INTERPRETED = kernel.INTERPRETED
HAS_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
runs = pytest.mark.skipif(not (INTERPRETED or HAS_GPU), reason="runs in the interpreter: test_in_the_interpreter")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA GPU")]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*TRITON_DEFAULT_FP_FUSION.*"),  # it says what a later Triton will do
    # numpy says when an integer wraps around and when there is an infinity, of which the kernel makes use
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
    # what the interpreter of older versions of Triton does
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]


@pytest.mark.skipif(INTERPRETED, reason="this is the process in which the others run")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not gpu", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


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


# --- the oracle on the seeds that were drawn ---------------------------------------------------------------------

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
    ((2, 3), (5, 5), (1, 1), 0.1),
    ((2, 3), (5, 5), (3, 3), 0.0),
    ((2, 3), (31, 33), (3, 3), 1 - 1e-9),
    ((2, 3), (31, 33), (3, 3), 1e-6),
    ((2, 65), (1, 1), (1, 1), 0.5),
    ((1, 1), (200, 300), (7, 7), 0.9),
    ((1, 2), (64, 64), (64, 1), 0.9),
    ((1, 1), (1, 2), (1, 1), 0.5),
    ((2, 3, 4), (6, 6), (2, 3), 0.8),
]


@runs
@pytest.mark.parametrize(("lead", "size", "block", "keep_prob"), GEOMETRY)
def test_the_mask_is_that_of_the_oracle_for_the_seeds_drawn(lead, size, block, keep_prob):
    for shared in ((), (len(lead) - 1,)):
        mask = kernel.draw(rng_seed(), some_blocks(lead, size, block, keep_prob, shared), corners=True)
        kept = oracle_kept(mask)
        assert torch.equal(mask.dense().cpu(), ~kept)
        assert mask.counts.sum().item() == (~kept).sum().item()
        assert mask.scale().item() == kept.numel() / max(kept.sum().item(), 1)


def layouts(x):
    yield x
    if x.dim() in CHANNELS_LAST:
        yield x.to(memory_format=CHANNELS_LAST[x.dim()])
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield x.repeat_interleave(2, -1)[..., ::2]
    yield x[:1].expand(x.shape)


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [(), (1,), (0,), (0, 1)], ids=str)
@pytest.mark.parametrize(
    ("lead", "size", "block"), [((3, 5), (9, 11), (3, 4)), ((2, 33), (50,), (5,)), ((2, 3), (3, 4, 5), (2, 2, 3))]
)
def test_values_are_those_of_the_oracle_in_every_layout(lead, size, block, shared, dtype):
    mask = kernel.draw(rng_seed(), some_blocks(lead, size, block, 0.7, shared))
    kept = ~mask.dense()
    whole = torch.randn(*lead, *size, device=DEVICE).to(dtype)
    whole.view(-1)[::17] = math.inf
    whole.view(-1)[5::23] = math.nan
    for x in layouts(whole):
        expected = reference.drop_block(x.cpu(), kept.cpu().expand(x.shape)).to(DEVICE)
        output = torch.empty_like(x)
        kernel.apply(x, output, mask)
        assert_same(output, expected)
        if 0 not in x.stride():
            inside = x.clone()
            kernel.apply(inside, inside, mask)
            assert_same(inside, expected)


@runs
def test_a_mask_shared_by_channels_that_does_not_start_a_word():
    """Three samples of nine channels: windows of bits begin anywhere in a word."""
    mask = kernel.draw(rng_seed(), some_blocks((3, 9), (5, 7), (2, 2), 0.6, (1,)))
    x = torch.randn(3, 9, 5, 7, device=DEVICE)
    output = torch.empty_like(x)
    kernel.apply(x, output, mask)
    assert torch.equal(output == 0, mask.dense().expand(x.shape))


@runs
@pytest.mark.parametrize("kind", ["contiguous", "channels_last"])
def test_nothing_depends_on_the_launch(kind):
    seed, blocks = rng_seed(), some_blocks((6, 37), (13, 15), (3, 5))
    x = torch.randn(6, 37, 13, 15, device=DEVICE)
    if kind == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    results = []
    for launch in (kernel.Launch(32, 64, 512, 16), kernel.Launch(256, 1024, 64, 64), kernel.Launch(2048, 128, 2048, 8)):
        mask, output = kernel.draw(seed, blocks, launch=launch), torch.empty_like(x)
        kernel.apply(x, output, mask, launch=launch)
        results.append((mask.words, output))
    for words, output in results[1:]:
        assert torch.equal(words, results[0][0])
        assert torch.equal(output, results[0][1])


@runs
def test_the_mask_is_a_function_of_the_rng_seed():
    blocks = some_blocks()
    one, two = rng_seed(), rng_seed()
    assert torch.equal(kernel.draw(one, blocks).words, kernel.draw(one.clone(), blocks).words)
    assert not torch.equal(kernel.draw(one, blocks).words, kernel.draw(two, blocks).words)
    for bit in (0, 31, 32, 63):
        other = one ^ torch.tensor(-(2**63) if bit == 63 else 1 << bit, device=DEVICE)
        assert not torch.equal(kernel.draw(one, blocks).words, kernel.draw(other, blocks).words)


@runs
def test_gamma_0_and_1():
    nothing = kernel.draw(rng_seed(), Blocks((2, 3), (9, 9), (3, 3), 0.0))
    assert nothing.scale().item() == 1.0
    assert not nothing.dense().any()
    for units in (1, 63, 64, 65):
        filled = kernel.draw(rng_seed(), Blocks((1,), (units,), (1,), 1.0))
        walked = kernel.draw(rng_seed(), Blocks((1,), (units,), (1,), 1.0), corners=True)
        assert torch.equal(filled.words, walked.words)
        assert filled.scale().item() == walked.scale().item() == units
    everything = kernel.draw(rng_seed(), Blocks((2, 3), (9, 9), (3, 3), 1.0), corners=True)
    assert everything.dense().all()
    assert len(everything.seeds()) == everything.blocks.positions
    x = torch.full((2, 3, 9, 9), math.nan, device=DEVICE)
    kernel.apply(x, x, everything)
    assert (x == 0).all()


def test_growth_makes_blocks():
    for size, block in [((40, 50), (e, 3)) for e in (1, 2, 7, 8, 9, 10, 16, 17, 26, 40)] + [((9, 8, 7), (9, 1, 7))]:
        reached = {0}
        for stride, step, last, shifts in kernel.growth(size, block):
            reached = {at + min(i * step, last) * stride for at in reached for i in range(shifts)}
        axes = [range(0, b * math.prod(size[i + 1 :]), math.prod(size[i + 1 :])) for i, b in enumerate(block[:-1])]
        assert reached == {sum(place) for place in itertools.product(*axes)}


# --- random numbers ----------------------------------------------------------------------------------------------

if INTERPRETED or HAS_GPU:

    @triton.jit
    def _store_exponentials(words, output, LANES: tl.constexpr):
        lane = tl.arange(0, LANES)
        tl.store(output + lane, kernel._exponential(tl.load(words + lane).to(tl.uint64, bitcast=True)))


@runs
def test_exponentials_are_precise_at_both_ends():
    numbers = [0, 1, 2, 1000, 2**20, 2**44, 2**55, 2**56 - 1, 2**56, 2**60, 2**63, 3 * 2**62 + 12345]
    numbers += [2**64 - 1 - n for n in numbers]
    numbers += [0] * (32 - len(numbers))
    signed = torch.tensor([n - 2**64 if n >> 63 else n for n in numbers], device=DEVICE)
    drawn = torch.empty(32, dtype=torch.float64, device=DEVICE)
    _store_exponentials[(1,)](signed, drawn, 32)
    for number, got in zip(numbers, drawn.tolist(), strict=True):
        # half is added to numbers that a float64 holds only in part: in integers it is exact
        low, high = 2 * number + 1, 2**65 - 2 * number - 1
        exact = -math.log1p(-low / 2**65) if low < high else 65 * math.log(2) - math.log(high)
        if low >= high and high > 2**60:
            exact = -math.log(high / 2**65)
        assert got == pytest.approx(exact, rel=2**-44)


@runs
@pytest.mark.parametrize("rate", ["exact", "paper"])
def test_gamma_is_solved_on_the_device(rate):
    sizes = [((28, 28), (7, 7)), ((7, 7), (7, 7)), ((14, 14), (1, 1)), ((100,), (9,)), ((6, 8, 7), (3, 2, 7))]
    for (size, block), keep_prob in itertools.product(
        [*sizes, ((112, 80), (40, 33))], [0.0, 1e-12, 0.1, 0.5, 0.50001, 0.9, 0.999, 1 - 1e-12, 1.0]
    ):
        gap = kernel.mean_gap(torch.tensor(keep_prob, dtype=torch.float64, device=DEVICE), size, block, rate).item()
        gamma = geometry.gamma(size, block, keep_prob, rate)
        expected = math.inf if gamma == 0.0 else 0.0 if gamma >= 1.0 else -1.0 / math.log1p(-gamma)
        # a gap of 0.03 is a γ of 1 - 1e-14, of which a float64 has two digits
        assert gap == pytest.approx(expected, rel=1e-8, abs=1e-3 if gamma > 1 - 1e-9 else 0)


@runs
@pytest.mark.parametrize("keep_prob", [0.0, 0.3, 0.9, 1.0])
def test_a_gap_on_the_device_draws_what_gamma_on_the_host_draws(keep_prob):
    seed, blocks = rng_seed(), some_blocks((2, 3), (13, 11), (3, 2), keep_prob)
    value = torch.tensor([keep_prob], dtype=torch.float64, device=DEVICE)
    gap = kernel.mean_gap(value, blocks.size, blocks.block, "exact")
    mask = kernel.draw(seed, some_blocks((2, 3), (13, 11), (3, 2), 0.5), gap)
    assert torch.equal(mask.words, kernel.draw(seed, blocks).words)
    assert mask.scale().item() == kernel.draw(seed, blocks).scale().item()


# --- statistics: those of tests/test_statistics.py ---------------------------------------------------------------

PLANES = 4096
# ordinary, even, rectangular, block 1, block = map, one smaller, a row, 1-d and 3-d
CASES = [
    ((28, 28), (7, 7)),
    ((14, 14), (6, 6)),
    ((7, 7), (7, 7)),
    ((40, 10), (7, 7)),
    ((12, 12), (1, 1)),
    ((17, 23), (3, 8)),
    ((8, 8), (7, 7)),
    ((1, 1), (1, 1)),
    ((31, 5), (1, 5)),
    ((100,), (9,)),
    ((33,), (33,)),
    ((6, 8, 7), (3, 3, 3)),
]


def dropped_planes(size, block, keep_prob, rate="exact", planes=PLANES):
    blocks = some_blocks((planes,), size, block, keep_prob, rate=rate)
    return kernel.draw(rng_seed(), blocks).dense().cpu().double()


@runs
@pytest.mark.parametrize("keep_prob", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("size", "block"), CASES)
def test_the_share_that_was_asked_for_is_dropped_at_every_position(size, block, keep_prob, z_score):
    dropped = dropped_planes(size, block, keep_prob)
    assert abs(z_score(dropped.flatten(1).mean(-1), 1 - keep_prob)) < 5
    expected = 1 - keep_rate_map(size, block, seed_probability(size, block, keep_prob))
    error = (expected * (1 - expected) / PLANES).sqrt()
    assert ((dropped.mean(0) - expected).abs() <= 5 * error + 1e-12).all()


@runs
@pytest.mark.parametrize("keep_prob", [0.5, 0.9])
@pytest.mark.parametrize(("size", "block"), CASES[:6])
def test_paper(size, block, keep_prob, z_score):
    gamma = seed_probability(size, block, keep_prob, "paper")
    expected = 1 - geometry.expected_keep_rate(size, block, gamma)
    assert abs(z_score(dropped_planes(size, block, keep_prob, "paper").flatten(1).mean(-1), expected)) < 5


@runs
@pytest.mark.parametrize("lag", [1, 2, 64])
@pytest.mark.parametrize(("size", "block"), [((28, 28), (7, 7)), ((7, 7), (7, 7)), ((12, 12), (1, 1)), ((100,), (9,))])
def test_planes_are_independent(size, block, lag, z_score):
    off = dropped_planes(size, block, 0.9)
    off -= 1 - keep_rate_map(size, block, seed_probability(size, block, 0.9))
    assert abs(z_score((off * off.roll(lag, 0)).flatten(1).mean(-1), 0.0)) < 5


@runs
@pytest.mark.parametrize("gamma", [0.0005, 0.01, 0.1, 0.6, 0.95])
def test_positions_are_independent_and_none_is_favoured(gamma):
    """Seeds themselves, within streams and across their ends."""
    blocks = Blocks((4000,), (259,), (1,), gamma)
    hit = kernel.draw(rng_seed(), blocks).dense().cpu().double()
    variance = gamma * (1 - gamma)
    assert ((hit.mean(0) - gamma).abs() < 5 * math.sqrt(variance / 4000)).all()
    assert abs(hit.mean().item() - gamma) < 5 * math.sqrt(variance / hit.numel())
    flat = hit.flatten() - gamma
    for lag in (1, 2, kernel.stream_length(blocks)):
        pairs = (flat[lag:] * flat[:-lag]).mean().item()
        assert abs(pairs) < 5 * variance / math.sqrt(len(flat) - lag)


@runs
def test_a_small_gamma_is_not_lost():
    """A million positions with γ = 1e-5: their number has the mean and the variance of a Poisson one."""
    blocks = Blocks((1000,), (1000,), (1,), 1e-5)
    counts = [kernel.draw(rng_seed(), blocks).counts.sum().item() for _ in range(20)]
    assert abs(sum(counts) - 200) < 5 * math.sqrt(200)
    few = Blocks((1000,), (1000,), (1,), 1e-12)
    assert sum(kernel.draw(rng_seed(), few).counts.sum().item() for _ in range(5)) == 0


@runs
@pytest.mark.parametrize("size", [(400, 500), (1024, 64)])
def test_large_planes_are_dropped_evenly(size, z_score):
    dropped = dropped_planes(size, (7, 7), 0.9, planes=6)
    expected = 1 - keep_rate_map(size, (7, 7), seed_probability(size, 7, 0.9))
    tiles = (dropped - expected).unfold(1, 32, 32).unfold(2, 32, 32).mean((-1, -2))
    assert abs(z_score(tiles, 0.0)) < 5


# --- the layer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def on_triton():
    with use_backend("triton"):
        yield


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_of_the_layer(dtype, memory_format, share_channels):
    x = torch.rand(4, 8, 14, 13, device=DEVICE).add(1).to(dtype).to(memory_format=memory_format).requires_grad_()
    y = drop_block2d(x, 3, keep_prob=0.8, share_channels=share_channels)
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    kept = (y != 0).cpu()
    assert kept.float().mean().item() == pytest.approx(0.8, abs=0.15)
    assert_same(y.detach().cpu(), reference.drop_block(x.detach().cpu(), kept))
    gradient = torch.randn(y.shape, device=DEVICE).to(dtype)  # contiguous, whatever the layout of x
    y.backward(gradient)
    assert_same(x.grad.cpu(), reference.drop_block(gradient.cpu(), kept))
    if share_channels:
        assert torch.equal(kept, kept[:, :1].expand_as(kept))


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_mask_does_not_depend_on_the_memory_format_and_follows_the_seed(dims):
    function = {1: drop_block1d, 2: drop_block2d, 3: drop_block3d}[dims]
    x = torch.rand(4, 8, *(20, 9, 6)[:dims], device=DEVICE).add(1)
    outputs = []
    for memory in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x):
        torch.manual_seed(3)
        outputs.append(function(memory, 3, keep_prob=0.8))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], function(x, 3, keep_prob=0.8))
    state = torch.get_rng_state() if DEVICE.type == "cpu" else torch.cuda.get_rng_state()
    drawn = [function(x, 3, generator=torch.Generator(DEVICE).manual_seed(5)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(state, torch.get_rng_state() if DEVICE.type == "cpu" else torch.cuda.get_rng_state())


@runs
@pytest.mark.usefixtures("on_triton")
def test_in_place():
    x = torch.rand(4, 8, 12, 12, device=DEVICE).add(1)
    leaf = x.clone().requires_grad_()
    middle = leaf * 1
    y = drop_block2d(middle, 3, keep_prob=0.8, inplace=True)
    assert y is middle
    y.sum().backward()
    assert torch.equal(leaf.grad == 0, y == 0)


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("keep_prob", [0.0, 1e-5, 1 - 1e-5, 1.0])
def test_extreme_keep_probs(keep_prob):
    x = torch.ones(4, 8, 12, 12, device=DEVICE, requires_grad=True)
    y = drop_block2d(x, 5, keep_prob=keep_prob)
    assert torch.isfinite(y).all()
    assert (y == 0).all() if keep_prob < 0.5 else (y != 0).float().mean() > 0.95
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


@runs
@pytest.mark.usefixtures("on_triton")
def test_derivatives_of_every_kind():
    def function(x):
        generator = torch.Generator(DEVICE).manual_seed(5)
        return drop_block2d(x * x, 2, keep_prob=0.7, generator=generator) * x

    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(4, 8, 12, 12, device=DEVICE), torch.full((4, 8, 12, 12), 2.0).to(DEVICE))
        value, tangent = forward_ad.unpack_dual(drop_block2d(dual, 3, keep_prob=0.7))
    assert torch.equal(tangent, 2 * value)


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap(randomness):
    def loss(x):
        y = drop_block2d(x, 3, keep_prob=0.7)
        return y.sum(), y

    x = torch.ones(5, 4, 8, 12, 12, device=DEVICE)
    gradients, y = vmap(grad(loss, has_aux=True), randomness=randomness)(x)
    assert torch.equal(gradients, y)
    assert torch.equal(y[0], y[1]) == (randomness == "same")
    assert torch.equal(y, (y != 0) * torch.tensor(y.numel() / (y != 0).sum().item(), device=DEVICE))


@runs
@pytest.mark.usefixtures("on_triton")
def test_activation_checkpointing_draws_the_same_mask_again():
    x = torch.rand(4, 8, 12, 12, device=DEVICE).add(1).requires_grad_()
    y = checkpoint(lambda x: drop_block2d(drop_block2d(x, 3).square(), 3), x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


@runs
@pytest.mark.usefixtures("on_triton")
def test_only_the_rng_seed_is_saved_and_the_backend_is_that_of_the_forward_pass():
    saved = []
    x = torch.rand(4, 8, 14, 14, device=DEVICE, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = drop_block2d(x, 3, keep_prob=0.8)
    assert sum(tensor.untyped_storage().nbytes() for tensor in saved) == 8
    with use_backend("sparse"):
        y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


class Watch(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        assert name not in self.WAITS, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@runs
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("share_channels", [False, True])
def test_the_host_waits_for_nothing(share_channels):
    x = torch.rand(4, 8, 14, 14, device=DEVICE, requires_grad=True)
    value = torch.tensor(0.9, dtype=torch.float64, device=DEVICE)
    with Watch():
        y = drop_block2d(x, 3, keep_prob=0.8, share_channels=share_channels)
        gap = kernel.mean_gap(value, (14, 14), (3, 3), "exact")
        blocks = some_blocks((4, 8), (14, 14), (3, 3), 0.5)
        z = ApplyBlocks.apply(x, rng_seed(), blocks, Scale(backend="triton", gap=gap), False)
        (y + z).sum().backward()
    assert torch.equal((x.grad == 0), (y == 0) & (z == 0))


@runs
def test_a_plane_too_large_is_named():
    blocks = Blocks((1,), (1 << 30,), (1,), 1e-9)
    with pytest.raises(ValueError, match="1073741824"):
        kernel.draw(rng_seed(), blocks)


# --- torch.compile -----------------------------------------------------------------------------------------------

OPERATORS = [
    ([4, 8], [20, 20], [5, 5], False, False),
    ([4, 37], [9, 9], [5, 5], False, True),
    ([4, 8], [9, 9], [5, 5], True, False),
    ([8], [30], [4], True, False),
    ([2, 3], [5, 6, 7], [2, 2, 2], False, True),
    ([0, 8], [20, 20], [5, 5], False, False),
]


@runs
@pytest.mark.parametrize(("lead", "size", "block", "share_channels", "channels_last"), OPERATORS)
@pytest.mark.parametrize("keep_prob", [0.0, 0.9, 1.0])
def test_operators_are_what_they_say(lead, size, block, share_channels, channels_last, keep_prob):
    arguments = (
        torch.tensor(7, device=DEVICE),
        torch.tensor(keep_prob, dtype=torch.float64),
        *(lead, size, block, "exact", share_channels, channels_last, "triton"),
    )
    torch.library.opcheck(compiled.draw, arguments)
    torch.library.opcheck(compiled.redraw, arguments)
    mask, scale = compiled.draw(*arguments)
    assert torch.equal(mask, compiled.redraw(*arguments))
    if 0 in lead:
        return
    dropped = compiled.Draw(*arguments[2:]).dropped(mask, torch.float32)
    blocks = some_blocks(tuple(lead), tuple(size), tuple(block), keep_prob, (len(lead) - 1,) if share_channels else ())
    assert torch.equal(dropped, kernel.draw(arguments[0], blocks).dense())
    assert scale.item() == dropped.numel() / max((~dropped).sum().item(), 1)


@runs
@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_code_gives_the_values_and_gradients_of_eager_mode(backend, memory_format, share_channels):
    torch._dynamo.reset()
    seed, keep_prob = rng_seed(), torch.tensor(0.8, dtype=torch.float64)
    function = torch.compile(
        lambda x: compiled._Apply.apply(x, seed, keep_prob, (5, 3), "exact", share_channels, "triton"),
        backend=backend,
        fullgraph=True,
    )
    blocks = some_blocks((3, 37), (20, 17), (5, 3), 0.8, (1,) if share_channels else ())
    one, gradient = (torch.randn(3, 37, 20, 17, device=DEVICE).to(memory_format=memory_format) for _ in range(2))
    x, again = one.clone().requires_grad_(), one.clone().requires_grad_()
    y, expected = function(x), ApplyBlocks.apply(again, seed, blocks, Scale(backend="triton"), False)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    y.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(x.grad, again.grad)


@runs
@pytest.mark.usefixtures("on_triton")
def test_a_compiled_layer_takes_the_path_that_was_asked_for(monkeypatch):
    torch._dynamo.reset()
    drawn = []
    draw = kernel.draw
    monkeypatch.setattr(kernel, "draw", lambda *arguments: drawn.append(arguments) or draw(*arguments))
    layer = DropBlock2d(3, keep_prob=0.5)
    function = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.ones(4, 8, 12, 12, device=DEVICE, requires_grad=True)
    y = function(x)
    y.sum().backward()
    assert len(drawn) == 2
    assert torch.equal(x.grad, y)
    layer.keep_prob = 0.99
    assert (function(x) != 0).float().mean() > 0.9
    with use_backend("sparse"):
        function(x)
    assert len(drawn) == 4, "compiled code keeps its path"


@pytest.mark.skipif(not INTERPRETED, reason="reads the code that is generated for a CPU")
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_bits_are_taken_apart_where_the_neighbours_work(memory_format):
    """One kernel in each direction: no pass over the activation, and no mask of bytes, beside it."""
    torch._dynamo.reset()
    layer = DropBlock2d(3)
    function = torch.compile(lambda x: layer(torch.relu(x * 2)) + 1, fullgraph=True)
    x = torch.rand(2, 37, 12, 12).to(memory_format=memory_format).requires_grad_()
    _, codes = run_fw_bw_and_get_code(lambda: function(x))
    assert len(codes) == 2
    for code, operator in zip(codes, ("draw", "redraw"), strict=True):
        assert f"torch_dropblock.{operator}.default(" in code
        (kernel_name,) = re.findall(r"^(\w+) = async_compile\.cpp_pybinding", code, re.MULTILINE)
        assert "where" in kernel_name


# --- the compiler, without a GPU ---------------------------------------------------------------------------------


def variants():
    """Every kernel with the types and constants of its calls."""
    for gap_in_memory, corners, positions in itertools.product([False, True], [False, True], ["i32", "i64"]):
        gap = "*fp64" if gap_in_memory else "*i64"
        types = ["*i32", "*i32", "*i64", gap, "fp32", "fp32", positions, *["i32"] * 9]
        constants = {"GAP_IN_MEMORY": gap_in_memory, "NOTE_CORNERS": corners, "LANES": kernel.Launch().lanes}
        yield kernel._draw, types, constants, {"num_warps": 1}
    for count in (False, True):
        yield kernel._grow, ["*i64"] * 3 + ["i32"] * 5, {"COUNT": count, "WORDS": kernel.Launch().words}, {}
    yield kernel._store_scale, ["*i64", "*fp64", "i64"], {}, {}
    for dtype, units in itertools.product(["fp16", "bf16", "fp32", "fp64"], ["i32", "i64"]):
        op = tl.float64 if dtype == "fp64" else tl.float32
        memory = [f"*{dtype}", f"*{dtype}"]
        constants = {"OP": op, "EIGHTS": kernel.Launch().eights}
        yield kernel._apply_flat, [*memory, "*u8", "*i64", units, units], constants, {}
        constants = {"OP": op, "CHANNELS": kernel.Launch().channels}
        yield kernel._apply_tiles, [*memory, "*i32", "*i64", units, *["i32"] * 13], constants, {}
        constants |= {"input_channel": 1, "output_channel": 1, "CHANNELS": 4}  # channels last; few channels
        yield kernel._apply_tiles, [*memory, "*i32", "*i64", units, *["i32"] * 11], constants, {}
    yield kernel._channels_inside, ["*i32", "*i32", *["i32"] * 5], {}, {}
    for paper in (False, True):
        yield kernel._solve, ["*fp64", "*fp64", *["i32"] * 6], {"PAPER": paper, "LANES": 1024}, {}


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles(capability, monkeypatch, tmp_path):
    """To machine code, by Triton's compiler and the assembler that it brings."""
    backends = pytest.importorskip("triton.backends.compiler")
    compiler = pytest.importorskip("triton.compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for function, types, constants, options in variants():
        left = iter(types)
        signature = {name: "constexpr" if name in constants else next(left) for name in function.arg_names}
        assert next(left, None) is None
        aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
        source = compiler.ASTSource(function, signature, constants, aligned)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = triton.compile(source, target=backends.GPUTarget("cuda", capability, 32), options=options)
        assert built.asm["cubin"]
        if function is kernel._apply_flat and types[0] == "*bf16":
            assert "ld.global.v4" in built.asm["ptx"], "16 bytes are read at once"
            assert "st.global.v4" in built.asm["ptx"]


# --- a GPU -------------------------------------------------------------------------------------------------------


def on_gpu(function):
    for mark in gpu:
        function = mark(function)
    return function


@on_gpu
def test_auto_takes_triton_for_cuda_tensors():
    from torch_dropblock import backend_report

    assert backend_report(torch.ones(2, 3, 8, 8, device="cuda")).backend == "triton"


@on_gpu
def test_a_cuda_graph_draws_fresh_masks_and_follows_a_schedule():
    x = torch.ones(64, 64, 28, 28, device="cuda", requires_grad=True)
    keep_prob = torch.tensor(0.9, dtype=torch.float64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            y = drop_block2d(x, 7, keep_prob=keep_prob)
            torch.autograd.grad(y.sum(), x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = drop_block2d(x, 7, keep_prob=keep_prob)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    outputs = []
    for value in (0.9, 0.9, 0.5):
        keep_prob.fill_(value)
        graph.replay()
        assert torch.equal(gradient, y)
        assert (y != 0).float().mean().item() == pytest.approx(value, abs=0.01)
        outputs.append(y.detach().clone())
    assert not torch.equal(outputs[0], outputs[1])
    torch.cuda.manual_seed(3)
    graph.replay()
    first = y.detach().clone()
    torch.cuda.manual_seed(3)
    graph.replay()
    assert torch.equal(first, y)


@on_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_with_a_schedule(mode):
    torch._dynamo.reset()
    layer = DropBlock2d(7).cuda()
    function = torch.compile(lambda x: layer(x * 2) + 1, mode=mode, fullgraph=True)
    x = torch.ones(64, 64, 28, 28, device="cuda", requires_grad=True)
    seen = []
    for keep_prob in (0.9, 0.9, 0.9, 0.7, 0.5):
        layer.keep_prob = keep_prob
        torch.compiler.cudagraph_mark_step_begin()
        y = function(x)
        assert (y == 1).float().mean().item() == pytest.approx(1 - keep_prob, abs=0.02)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient == 0, y == 1)
        seen.append((y == 1).clone())
    assert not torch.equal(seen[1], seen[2])


@on_gpu
@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_device_is_not_waited_for(memory_format, share_channels):
    x = torch.ones(16, 64, 28, 28, device="cuda").to(memory_format=memory_format).requires_grad_()
    keep_prob = torch.tensor(0.9, device="cuda")
    for backend in ("triton", "sparse"):
        with use_backend(backend):
            drop_block2d(x, 7, share_channels=share_channels).sum().backward()  # compiled before it is watched
            torch.cuda.set_sync_debug_mode("error")
            try:
                drop_block2d(x, 7, share_channels=share_channels).sum().backward()
                if backend == "triton":
                    drop_block2d(x, 7, keep_prob=keep_prob, share_channels=share_channels).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_deterministic_mode_and_autocast():
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            x = torch.ones(4, 8, 28, 28, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            y = drop_block2d(x, 7)
        y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert y.dtype == torch.bfloat16


@on_gpu
@pytest.mark.parametrize("size", [(1024, 1024), (1, 1), (7, 7), (56, 56)])
def test_sizes(size, z_score):
    planes = max(64, 2**24 // math.prod(size))
    dropped = drop_block2d(torch.ones(planes, 1, *size, device="cuda"), 7) == 0
    assert abs(z_score(dropped.double().flatten(1).mean(-1).cpu(), 0.1)) < 5


@on_gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_more_than_2_to_the_31_elements(memory_format):
    if torch.cuda.get_device_properties(0).total_memory < 24e9:
        pytest.skip("needs 24 GB")
    x = torch.ones(1100, 640, 56, 56, device="cuda", dtype=torch.float16).to(memory_format=memory_format)
    assert x.numel() > 2**31
    y = drop_block2d(x, 7, inplace=True)
    for part in (y[:10], y[-10:]):
        assert (part == 0).float().mean().item() == pytest.approx(0.1, abs=0.002)
        blocks = torch.nn.functional.max_pool2d(part.float(), 7, stride=1)  # every zero belongs to a whole block
        grown = torch.nn.functional.max_pool2d(torch.nn.functional.pad((blocks == 0).half(), (6, 6, 6, 6)), 7, stride=1)
        assert torch.equal(grown == 1, part == 0)


@on_gpu
@pytest.mark.parametrize("kind", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_speed(kind, dtype):
    """A wide bound, since machines are shared; benchmarks/gpu.py has the figures."""
    from torch_dropblock import bench

    case = bench.Case((128, 256, 64, 64), str(dtype).removeprefix("torch."), kind, device="cuda")
    rows = {row.contender: row for row in bench.measure(case, rounds=5)}
    assert rows[bench.OURS].ratio < 2
    assert rows[bench.OURS].saved_bytes_per_element * math.prod(case.shape) <= 64
