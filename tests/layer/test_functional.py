"""The functions as a user calls them: dtypes, layouts, shapes, randomness, errors."""

import numpy as np
import pytest
import torch
import torch.fx
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from torch_dropblock import (
    DropBlock2d,
    drop_block1d,
    drop_block2d,
    drop_block3d,
    drop_block_mask,
    expected_keep_rate,
    seed_probability,
)

FUNCTIONS = [drop_block1d, drop_block2d, drop_block3d]
SIZES = {drop_block1d: (31,), drop_block2d: (12, 17), drop_block3d: (6, 9, 7)}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(5,), (4, 5)])
@pytest.mark.parametrize("drop_block", FUNCTIONS)
def test_shape_and_dtype_are_kept(drop_block, lead, dtype):
    x = torch.ones(*lead, *SIZES[drop_block], dtype=dtype)
    y = drop_block(x, 3, keep_prob=0.5)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert (y == 0).any()
    assert (y > 1).any()
    assert torch.equal(x, torch.ones_like(x)), "the input is left alone"


@pytest.mark.parametrize("dtype", DTYPES)
def test_ones_in_mean_one_out_to_the_precision_of_the_dtype(dtype):
    y = drop_block2d(torch.ones(50, 256, 28, 28, dtype=dtype), 7, keep_prob=0.9)
    assert y.numel() > 10_000_000
    assert abs(y.double().mean().item() - 1) < 4 * torch.finfo(dtype).eps  # float64: the sum of the test rounds too


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kept_unit_is_scaled_in_float32_and_then_rounded(dtype):
    x = torch.rand(8, 16, 28, 28).add(1).to(dtype)  # no zeros
    y = drop_block2d(x, 7, keep_prob=0.9)
    op = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(x.numel() / (y != 0).sum().item(), dtype=op)
    assert torch.equal(y, torch.where(y != 0, (x.to(op) * scale).to(dtype), 0))


def test_autocast_leaves_it_alone():
    x = torch.ones(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert drop_block2d(x, 3).dtype == torch.float32
        assert drop_block2d(x.bfloat16(), 3).dtype == torch.bfloat16


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("share_channels", [False, True])
def test_memory_format_is_kept_and_does_not_change_the_mask(memory_format, share_channels):
    x = torch.rand(4, 6, 12, 17).add(1)
    expected = drop_block2d(x, 3, share_channels=share_channels, generator=torch.Generator().manual_seed(3))
    x = x.to(memory_format=memory_format)
    y = drop_block2d(x, 3, share_channels=share_channels, generator=torch.Generator().manual_seed(3))
    assert y.is_contiguous(memory_format=memory_format)
    assert torch.equal(y, expected)


def test_channels_last_3d():
    x = torch.rand(2, 4, 6, 9, 7).add(1)
    expected = drop_block3d(x, 3, generator=torch.Generator().manual_seed(3))
    y = drop_block3d(x.to(memory_format=torch.channels_last_3d), 3, generator=torch.Generator().manual_seed(3))
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(y, expected)


def test_expanded_input():
    y = drop_block2d(torch.ones(1, 1, 1, 17).expand(4, 6, 12, 17), 3)
    assert y.shape == (4, 6, 12, 17)
    assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize("share_channels", [False, True])
def test_planes_have_masks_of_their_own_unless_shared(share_channels):
    y = drop_block2d(torch.ones(16, 8, 28, 28), 7, share_channels=share_channels)
    assert (y == y[:, :1]).all() == share_channels
    assert not (y == y[:1]).all()


def test_unbatched_shares_its_channels_too():
    y = drop_block2d(torch.ones(8, 28, 28), 7, keep_prob=0.5, share_channels=True)
    assert torch.equal(y, y[:1].expand(8, 28, 28))
    assert (y == 0).any()


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (0, 8, 8)])
@pytest.mark.parametrize("inplace", [False, True])
def test_empty(shape, inplace):
    x = torch.ones(shape, requires_grad=True)
    y = drop_block2d(x * 1, 3, inplace=inplace)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape


def test_keep_prob_0_of_the_paper_keeps_what_its_gamma_keeps():
    x = torch.ones(64, 64, 8, 8)
    kept = [(drop_block2d(x, 3, keep_prob=p, rate="paper", key=5) != 0).double().mean().item() for p in (0.0, 1e-12)]
    expected = expected_keep_rate((8, 8), 3, seed_probability((8, 8), 3, 0.0, "paper"))
    assert kept == [pytest.approx(expected, abs=0.01)] * 2


@pytest.mark.parametrize("rate", ["exact", "paper"])
def test_keep_prob_0_gives_zeros(rate):
    """The paper's γ is 1 only where blocks cannot overlap."""
    x = torch.full((2, 3, 8, 8), float("inf"), requires_grad=True)
    y = drop_block2d(x, 3 if rate == "exact" else 8, keep_prob=0.0, rate=rate)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_nothing_kept_by_chance_gives_zeros():
    y = drop_block2d(torch.full((1, 1, 3, 3), float("nan")), 3, keep_prob=1e-12)
    assert torch.equal(y, torch.zeros_like(y))


@pytest.mark.parametrize("options", [{"training": False}, {"keep_prob": 1.0}, {"keep_prob": torch.tensor(1.0)}])
def test_nothing_to_drop_returns_the_input_and_consumes_no_randomness(options):
    x, state = torch.ones(2, 3, 8, 8), torch.get_rng_state()
    assert drop_block2d(x, 3, **options) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_manual_seed_fixes_the_mask():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append((drop_block2d(torch.ones(4, 8, 28, 28), 7), drop_block2d(torch.ones(4, 8, 28, 28), 7)))
    assert torch.equal(masks[0][0], masks[1][0])
    assert torch.equal(masks[0][1], masks[1][1])
    assert not torch.equal(masks[0][0], masks[2][0])
    assert not torch.equal(masks[0][0], masks[0][1]), "each call has a fresh mask"


def test_a_generator_fixes_the_mask_and_leaves_the_global_state():
    x, state = torch.ones(4, 8, 28, 28), torch.get_rng_state()
    a, b = (drop_block2d(x, 7, generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_of_threads_does_not_change_the_result():
    x, threads = torch.randn(32, 64, 28, 28), torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(drop_block2d(x, 5, generator=torch.Generator().manual_seed(9)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_keep_prob_as_a_tensor():
    x = torch.ones(4, 8, 28, 28)
    a = drop_block2d(x, 7, keep_prob=torch.tensor(0.8, dtype=torch.float64), generator=torch.Generator().manual_seed(9))
    b = drop_block2d(x, 7, keep_prob=0.8, generator=torch.Generator().manual_seed(9))
    assert torch.equal(a, b)


def test_rates_differ_where_blocks_overlap():
    x = torch.ones(64, 64, 28, 28)
    shares = [(drop_block2d(x, 7, keep_prob=0.5, rate=rate) == 0).float().mean().item() for rate in ("exact", "paper")]
    assert shares == [pytest.approx(0.5, abs=0.01), pytest.approx(0.37, abs=0.01)]


@pytest.mark.parametrize("inplace", [False, True])
def test_meta_tensors_keep_their_shape_and_their_graph(inplace):
    x = torch.ones(2, 3, 8, 8, device="meta", requires_grad=True)
    z = x * 1
    y = drop_block2d(z, 3, inplace=inplace)
    assert y.is_meta
    assert y.shape == (2, 3, 8, 8)
    assert (y is z) == inplace
    y.sum().backward()
    assert x.grad.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("inplace", [False, True])
def test_fake_tensors_keep_their_shape_and_their_graph(inplace):
    with FakeTensorMode():
        x = torch.ones(2, 3, 8, 8, requires_grad=True)
        y = drop_block2d(x * 1, 3, inplace=inplace)
        assert y.shape == (2, 3, 8, 8)
        y.sum().backward()
        assert x.grad.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("training", [False, True])
def test_fx_traces_the_layer_as_one_node(training):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), DropBlock2d(3, keep_prob=0.5)).train(training)
    traced = torch.fx.symbolic_trace(network)
    x = torch.rand(4, 3, 12, 12)
    torch.manual_seed(1)
    expected = network(x)
    torch.manual_seed(1)
    assert torch.equal(traced(x), expected)
    assert (expected == 0).any() == training


def test_default_device_and_dtype_of_others_do_not_matter():
    x = torch.ones(8, 8, 28, 28)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            y = drop_block2d(x, 7)
    finally:
        torch.set_default_dtype(torch.float32)
    assert 0 < (y == 0).float().mean() < 0.3


def test_deterministic_algorithms_and_inference_mode():
    x = torch.ones(8, 8, 28, 28)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.inference_mode():
            assert (drop_block2d(x, 7) == 0).any()
            assert (drop_block2d(x * 1, 7, inplace=True) == 0).any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_inplace_on_a_leaf_is_refused_before_anything_is_written():
    x, state = torch.ones(2, 3, 8, 8, requires_grad=True), torch.get_rng_state()
    with pytest.raises(ValueError, match="^inplace=True is not possible on a leaf"):
        drop_block2d(x, 3, inplace=True)
    with pytest.raises(ValueError, match="^inplace=True is not possible on a leaf"):
        drop_block2d(x, 3, keep_prob=1.0, inplace=True)  # else a schedule would run into it at its second step
    with pytest.raises(ValueError, match="^inplace=True is not possible on a view of a leaf"):
        drop_block2d(x[:, :2], 3, inplace=True)
    shared = torch.ones(1, 3, 8, 8).expand(2, 3, 8, 8)
    with pytest.raises(ValueError, match="^inplace=True is not possible on a tensor whose elements may share memory"):
        drop_block2d(shared, 3, inplace=True)
    assert torch.equal(x, torch.ones(2, 3, 8, 8))
    assert torch.equal(shared, torch.ones(2, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"block_size": 0}, ValueError, "block_size must be"),
        ({"block_size": 0.1}, TypeError, "block_size must be"),
        ({"block_size": (3, 3, 3)}, ValueError, "block_size must be"),
        ({"keep_prob": 1.5}, ValueError, "keep_prob must be"),
        ({"keep_prob": float("nan")}, ValueError, "keep_prob must be"),
        ({"keep_prob": torch.tensor(-1.0)}, ValueError, "keep_prob must be"),
        ({"keep_prob": "0.9"}, TypeError, "keep_prob must be"),
        ({"rate": "Exact"}, ValueError, "rate must be"),
        ({"share_channels": 1}, TypeError, "share_channels must be"),
        ({"training": "yes"}, TypeError, "training must be"),
        ({"inplace": None}, TypeError, "inplace must be"),
        ({"generator": 42}, TypeError, "generator must be"),
        ({"input": torch.ones(8, 8)}, ValueError, r"input must be .*got one of shape \(8, 8\)"),
        ({"input": torch.ones(1, 1, 8, 8, dtype=torch.int32)}, TypeError, "input must be .*got torch.int32"),
        ({"input": [[1.0]]}, TypeError, "input must be .*got a list"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_drawn(change, error, words):
    arguments = {"input": torch.ones(2, 3, 8, 8), "block_size": 3} | change
    state = torch.get_rng_state()
    with pytest.raises(error, match=words):
        drop_block2d(arguments.pop("input"), arguments.pop("block_size"), **arguments)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
        lambda x: x.to_mkldnn(),
        lambda x: x.to(torch.int64),
        lambda x: x.to(torch.complex64),
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: x.to_sparse(),
        lambda x: x.flatten(),
        lambda x: [x, x],
        lambda x: None,
    ],
)
def test_evaluation_returns_its_input_whatever_it_is(make):
    value = make(torch.ones(2, 3, 8, 8))
    assert DropBlock2d(3, inplace=True).eval()(value) is value
    assert drop_block2d(value, 3, training=False, generator=torch.Generator()) is value


def test_keep_prob_is_not_positional():
    with pytest.raises(
        TypeError, match=r"^drop_block2d\(\) takes 2 positional arguments but 3 were given; .*torchvision"
    ):
        drop_block2d(torch.ones(2, 3, 8, 8), 0.1, 7)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_passes_everything_on(function):
    x = torch.ones(8, 16, *SIZES[function])
    shared = function(x, 3, keep_prob=0.5, share_channels=True)
    own = function(x, 3, keep_prob=0.5)
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    assert not torch.equal(own, own[:, :1].expand_as(own))
    a, b = (function(x, 3, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert function(x, 3, training=False, inplace=True) is x
    assert function(x, 3, inplace=True) is x
    assert (x == 0).any()


def test_a_dtensor_is_refused():
    class DTensor(torch.Tensor):
        pass

    with pytest.raises(TypeError, match=r"got a DTensor: call it on what its to_local\(\) returns"):
        drop_block2d(torch.ones(1, 2, 8, 8).as_subclass(DTensor), 3)


# --- key ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "same",
    [
        (5, np.int64(5), np.uint8(5), torch.tensor(5)),
        (-1, 2**64 - 1, np.int64(-1), np.uint64(2**64 - 1), torch.tensor(-1)),
        (-(2**63), 2**63, torch.tensor(-(2**63))),
    ],
)
def test_a_key_fixes_the_mask_and_draws_nothing(function, same):
    x, state = torch.rand(4, 5, *SIZES[function]).add(1), torch.get_rng_state()
    first, *others = [function(x, 3, key=key) for key in same]
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, function(x, 3, key=6))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("key", [np.int64(5), np.uint64(2**64 - 5), 2**64 - 5, -5, torch.tensor(-5)])
def test_a_key_under_vmap(key):
    x = torch.rand(3, 2, 8, 9, 9).add(1)
    y = vmap(lambda x: drop_block2d(x, 3, key=key))(x)
    assert torch.equal(y[1] != 0, drop_block2d(x[1], 3, key=key) != 0)


def test_keys_are_not_mapped_over():
    """A mask of the first key would not be that of the others."""
    x = torch.ones(2, 8, 9, 9)
    with pytest.raises(ValueError, match="^key must be the same for all that torch.vmap maps over"):
        vmap(lambda x, key: drop_block2d(x, 3, key=key), in_dims=(None, 0))(x, torch.arange(2))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"key": 0.5}, TypeError, "key must be"),
        ({"key": False}, TypeError, "key must be"),
        ({"key": "5"}, TypeError, "key must be"),
        ({"key": torch.tensor(5.0)}, TypeError, "key must be"),
        ({"key": torch.tensor([5])}, TypeError, "key must be"),
        ({"key": 2**64}, ValueError, "key must be"),
        ({"key": -(2**63) - 1}, ValueError, "key must be"),
        ({"key": 5, "generator": torch.Generator()}, ValueError, "key and generator exclude each other"),
    ],
)
def test_a_bad_key_is_refused(options, error, words):
    with pytest.raises(error, match=f"^{words}"):
        drop_block2d(torch.ones(2, 3, 8, 8), 3, **options)


# --- drop_block_mask ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(5,), (4, 5)])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep_prob": 0.0},
        {"keep_prob": 1.0},
        {"keep_prob": 0.5, "share_channels": True},
        {"keep_prob": 0.5, "rate": "paper"},
    ],
)
def test_a_mask_is_what_a_call_with_its_key_keeps(function, lead, options):
    x = torch.rand(*lead, *SIZES[function]).add(1)
    for key in (5, torch.tensor(-5)):
        kept = drop_block_mask(x.shape, 3, dims=len(SIZES[function]), key=key, **options)
        assert kept.dtype == torch.bool
        assert torch.equal(kept, function(x, 3, key=key, **options) != 0)


def test_a_mask_without_a_key_is_that_of_the_next_call():
    x = torch.ones(4, 8, 12, 17)
    torch.manual_seed(3)
    kept = drop_block_mask(x.shape, 3)
    torch.manual_seed(3)
    assert torch.equal(kept, drop_block2d(x, 3) != 0)
    assert not torch.equal(kept, drop_block_mask(x.shape, 3))
    state = torch.get_rng_state()
    assert drop_block_mask(x.shape, 3, keep_prob=1.0).all()
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn where nothing is dropped"


def test_where_a_mask_is():
    with torch.device("meta"):
        assert drop_block_mask((2, 3, 8, 8), 3).device.type == "cpu"
    assert drop_block_mask((2, 3, 8, 8), 3, device="meta").is_meta
    assert drop_block_mask((2, 0, 8, 8), 3).shape == (2, 0, 8, 8)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"shape": (8, 8)}, ValueError, r"shape must have 3 or 4 dimensions, got \(8, 8\)"),
        ({"shape": (1, 1, 8, 8), "dims": 1}, ValueError, r"shape must have 2 or 3 dimensions"),
        ({"shape": 8}, TypeError, "shape must be a sequence of ints"),
        ({"shape": (3, 8.0, 8)}, TypeError, r"shape\[1\] must be an int"),
        ({"shape": (3, -1, 8)}, ValueError, r"shape\[1\] must be an int of at least 0"),
        ({"dims": 4}, ValueError, "dims must be 1, 2 or 3, got 4"),
        ({"dims": 0}, ValueError, "dims must be"),
        ({"dims": 2.0}, TypeError, "dims must be"),
        ({"block_size": 0}, ValueError, "block_size must be"),
        ({"block_size": (3, 3, 3)}, ValueError, "block_size must be"),
        ({"keep_prob": 1.5}, ValueError, "keep_prob must be"),
        ({"rate": "fast"}, ValueError, "rate must be"),
        ({"share_channels": 1}, TypeError, "share_channels must be"),
        ({"key": 1.0}, TypeError, "key must be"),
    ],
)
def test_bad_arguments_of_a_mask_are_named(change, error, words):
    arguments = {"shape": (2, 3, 8, 8), "block_size": 3} | change
    with pytest.raises(error, match=f"^{words}"):
        drop_block_mask(**arguments)
