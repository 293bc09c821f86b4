"""One mask for the batch, no rescaling, noise for zeros: on every path the mask of the key, and the formulas."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import torch_dropblock
from torch_dropblock import DropBlock2d, drop_block1d, drop_block2d, drop_block3d, drop_block_mask, use_backend
from torch_dropblock.backends import native
from torch_dropblock.core import noise
from torch_dropblock.layer.record import Record

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]
NAMES = ["share_channels", "share_batch", "scale_by_keep", "with_noise"]
VARIANTS = [dict(zip(NAMES, flags, strict=True)) for flags in itertools.product([False, True], repeat=4)]
VARIANTS = [v for v in VARIANTS if v["share_batch"] or not v["scale_by_keep"] or v["with_noise"]]
FEW = [
    {"share_batch": True},
    {"scale_by_keep": False},
    {"with_noise": True},
    {"share_batch": True, "share_channels": True, "scale_by_keep": False, "with_noise": True},
]
KEY, KEEP = 20181030, 0.8


def expected(x, gradient, share_channels=False, share_batch=False, scale_by_keep=True, with_noise=False):
    """The output and the gradient of (N, C, H, W) or (C, H, W), from the mask of the key alone."""
    own = list(x.shape)
    own[-3] = 1 if share_channels else own[-3]
    own[0] = 1 if share_batch and x.dim() == 4 else own[0]
    op = torch.float64 if x.dtype == torch.float64 else torch.float32
    kept = drop_block_mask(own, (5, 3), keep_prob=KEEP, key=KEY)
    scale = torch.tensor(kept.numel() / kept.sum().item() if scale_by_keep else 1.0, dtype=op)
    fill = noise.normal(torch.tensor(KEY), own, op) if with_noise else torch.zeros((), dtype=op)
    output = torch.where(kept, (x.to(op) * scale).to(x.dtype), fill.to(x.dtype))
    return output, torch.where(kept, (gradient.to(op) * scale).to(x.dtype), 0.0)


def drop(x, **options):
    return drop_block2d(x, (5, 3), keep_prob=KEEP, key=KEY, **options)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "permuted": lambda t: t.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
    "strided": lambda t: torch.zeros(*(2 * n for n in t.shape), dtype=t.dtype)[
        tuple(slice(None, 2 * n, 2) for n in t.shape)
    ].copy_(t),
    "unbatched": lambda t: t[0],
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_output_and_gradient(variant, layout, dtype):
    x, gradient = (LAYOUTS[layout](torch.randn(4, 6, 20, 17).to(dtype)) for _ in range(2))
    output, grad_of_input = expected(x, gradient, **variant)
    for name in ("auto", "sparse", "reference", *(["native"] if native.LIBRARY and layout == "contiguous" else [])):
        leaf, written = x.detach().requires_grad_(), x.clone()
        with use_backend(name):
            y = drop(leaf, **variant)
            assert drop(written, inplace=True, **variant) is written
        assert torch.equal(y, output)
        assert torch.equal(written, output)
        assert y.dtype == dtype
        assert y.stride() == torch.empty_like(x).stride()
        y.backward(gradient)
        assert torch.equal(leaf.grad, grad_of_input)


@pytest.mark.parametrize("variant", FEW, ids=str)
@pytest.mark.parametrize(
    ("function", "shape"), [(drop_block1d, (3, 4, 50)), (drop_block2d, (3, 4, 12, 12)), (drop_block3d, (3, 4, 6, 6, 6))]
)
def test_other_layouts_have_the_mask_and_the_noise_of_channels_first(function, shape, variant):
    x = torch.randn(shape)
    first = function(x, 3, keep_prob=0.7, key=5, **variant)
    last = function(x.movedim(1, -1).contiguous(), 3, keep_prob=0.7, key=5, layout="channels_last", **variant)
    assert torch.equal(last.movedim(-1, 1), first)
    tokens = torch.cat([torch.ones(3, 2, 4), x.flatten(2).mT], 1)
    y = function(tokens, 3, keep_prob=0.7, key=5, layout=shape[2:], **variant)
    assert torch.equal(y[:, :2], tokens[:, :2])
    assert torch.equal(y[:, 2:].mT.reshape(shape), first)


# --- what they do, by the numbers --------------------------------------------------------------------------------


def test_a_shared_mask_is_that_of_a_batch_of_one():
    for share_channels in (False, True):
        shape = (5, 6, 20, 17)
        mask = drop_block_mask(shape, 5, share_batch=True, share_channels=share_channels, key=KEY)
        one = drop_block_mask((1, *shape[1:]), 5, share_channels=share_channels, key=KEY)
        assert torch.equal(mask, one.expand(shape))
        assert not mask.all()
        assert torch.equal(mask, mask[:, :1].expand(shape)) == share_channels


@pytest.mark.parametrize("share_channels", [False, True])
def test_a_shared_mask_drops_the_share_that_was_asked_for(share_channels, z_score):
    """Over independent masks: those of channels, or of keys."""
    if share_channels:
        x = torch.ones(2, 2, 14, 14)
        y = torch.stack([drop_block2d(x, 7, share_channels=True, share_batch=True)[0, 0] for _ in range(2000)])
    else:
        y = drop_block2d(torch.ones(2, 4096, 14, 14), 7, share_batch=True)[0]
    assert abs(z_score((y == 0).double().mean((-1, -2)), 0.1)) < 5


def test_without_scaling_the_mean_falls_and_with_it_it_stays(z_score):
    x = torch.randn(256, 64, 14, 14) + 3
    for options, mean in (
        ({"scale_by_keep": False}, 3 * KEEP),
        ({"scale_by_keep": False, "with_noise": True}, 3 * KEEP),
        ({"with_noise": True}, 3),
        ({"share_batch": True, "with_noise": True}, 3),
    ):
        planes = drop_block2d(x, 5, keep_prob=KEEP, **options).mean((-1, -2))
        planes = planes.mean(0) if "share_batch" in options else planes  # the samples are not independent
        assert abs(z_score(planes, mean)) < 5, options


def test_a_kept_unit_stays_as_it_is_without_scaling():
    x = torch.randn(8, 16, 20, 20)
    y = drop_block2d(x, 5, keep_prob=0.5, scale_by_keep=False, key=1)
    kept = drop_block_mask(x.shape, 5, keep_prob=0.5, key=1)
    assert torch.equal(y, torch.where(kept, x, 0.0))


def test_noise_is_standard_normal_where_dropped_and_nowhere_else(z_score):
    x = torch.full((256, 64, 14, 14), 100.0)
    y = drop_block2d(x, 5, keep_prob=KEEP, with_noise=True, scale_by_keep=False, key=1)
    dropped = ~drop_block_mask(x.shape, 5, keep_prob=KEEP, key=1)
    assert torch.equal(y == 100, ~dropped)
    values = y[dropped]
    assert abs(z_score(values, 0.0)) < 5
    assert abs(z_score(values**2, 1.0)) < 5
    assert abs(z_score(values**4, 3.0)) < 5
    inside = y[..., 1:] * y[..., :-1] * (dropped[..., 1:] & dropped[..., :-1])
    assert abs(z_score(inside[inside != 0], 0.0)) < 5, "neighbours are independent"


def test_units_that_share_a_mask_share_the_noise():
    x = torch.randn(4, 6, 20, 20)
    for options in ({"share_channels": True}, {"share_batch": True}, {"share_channels": True, "share_batch": True}):
        y = drop_block2d(x, 5, keep_prob=0.5, with_noise=True, key=1, **options)
        dropped = ~drop_block_mask(x.shape, 5, keep_prob=0.5, key=1, **options)
        first = y[: 1 if "share_batch" in options else None, : 1 if "share_channels" in options else None]
        assert torch.equal(y[dropped], first.expand_as(y)[dropped])
        assert len(y[dropped].unique()) > 20


# --- randomness --------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_mask_that_it_gives_without_the_options():
    x = torch.randn(4, 8, 20, 20)

    def drop(**options):
        torch.manual_seed(1)
        return drop_block2d(x, 5, **options)

    plain, unscaled, noisy = drop(), drop(scale_by_keep=False), drop(with_noise=True)
    dropped = plain == 0
    assert torch.equal(unscaled, x.masked_fill(dropped, 0))
    assert torch.equal(noisy == plain, ~dropped)
    assert torch.equal(noisy, drop(with_noise=True))
    assert not torch.equal(noisy, drop_block2d(x, 5, with_noise=True))


def test_a_generator_is_the_only_source():
    x, state = torch.randn(4, 8, 20, 20), torch.get_rng_state()
    for options in FEW:
        a, b = (drop_block2d(x, 5, generator=torch.Generator().manual_seed(9), **options) for _ in range(2))
        assert torch.equal(a, b)
    drop(x, with_noise=True)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("options", FEW, ids=str)
def test_activation_checkpointing(options, use_reentrant):
    """What follows the layer sees the noise of the first pass again."""
    x, layer = torch.randn(4, 8, 12, 12, requires_grad=True), DropBlock2d(3, keep_prob=0.7, **options)
    gradients = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=use_reentrant)):
        torch.manual_seed(3)
        y = run(lambda x: layer(layer(x).square().add(x)).square(), x)
        gradients.append(torch.autograd.grad(y.sum(), x)[0] if not use_reentrant else None)
        if use_reentrant:  # which does not work with torch.autograd.grad
            x.grad = None
            y.sum().backward()
            gradients[-1] = x.grad
    assert torch.equal(*gradients)


# --- derivatives and transforms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", FEW, ids=str)
def test_first_and_second_derivatives_in_both_modes(options):
    def function(x):
        return drop_block2d(x * x, (3, 2), keep_prob=0.7, key=5, **options) * x

    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, (x,), check_fwd_over_rev=True)


@pytest.mark.parametrize("options", FEW, ids=str)
def test_a_dropped_unit_loses_inf_and_nan_and_has_no_gradient(options):
    for value in (float("inf"), float("nan")):
        x = torch.full((8, 16, 12, 12), value, requires_grad=True)
        y = drop(x, **options)
        dropped = ~drop_block_mask(x.shape, (5, 3), keep_prob=KEEP, key=KEY,
                                   **{k: v for k, v in options.items() if k.startswith("share")})  # fmt: skip
        assert torch.equal(y.isfinite(), dropped)
        (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, value))
        assert torch.equal(gradient == 0, dropped)


@pytest.mark.parametrize("options", FEW, ids=str)
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap(options, randomness):
    x = torch.randn(3, 4, 8, 12, 12)

    def loss(x):
        y = drop_block2d(x, 3, keep_prob=0.7, **options)
        return (y * x.detach()).sum(), y

    gradients, y = vmap(grad(loss, has_aux=True), randomness=randomness)(x)
    dropped = gradients == 0
    assert 0.1 < dropped.float().mean() < 0.5
    assert torch.equal(dropped[0], dropped[1]) == (randomness == "same")
    if options.get("share_batch"):
        assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    if options.get("with_noise"):
        both = dropped[0] & dropped[1]
        assert torch.equal(y[0][both], y[1][both]) == (randomness == "same")
    unlike = vmap(lambda f: drop_block2d(x[0], 3, keep_prob=0.7, **options) * f, randomness=randomness)(torch.ones(2))
    assert torch.equal(unlike[0], unlike[1]) == (randomness == "same")


@pytest.mark.parametrize("options", FEW, ids=str)
def test_inplace_on_a_leaf_is_refused_before_anything_is_written(options):
    x, state = torch.ones(2, 3, 8, 8, requires_grad=True), torch.get_rng_state()
    with pytest.raises(ValueError, match="^inplace=True is not possible on a leaf"):
        drop_block2d(x, 3, inplace=True, **options)
    assert torch.equal(x, torch.ones(2, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", FEW, ids=str)
def test_all_nothing_and_no_units(options):
    x = torch.randn(4, 6, 8, 8)
    state = torch.get_rng_state()
    assert drop_block2d(x, 3, keep_prob=1.0, **options) is x
    assert drop_block2d(x, 3, training=False, **options) is x
    assert DropBlock2d(3, **options).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)
    y = drop_block2d(x, 3, keep_prob=0.0, **options)
    if options.get("with_noise"):
        assert 0.5 < y.std() < 1.5
    else:
        assert not y.any()
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (0, 8, 8)):
        empty = torch.ones(shape, requires_grad=True)
        y = drop_block2d(empty * 1, 3, inplace=True, **options)
        assert y.shape == shape
        y.sum().backward()
        assert empty.grad.shape == shape


# --- compiled ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [FEW[0], FEW[2], FEW[3]], ids=str)
def test_compiled_code_has_the_mask_and_the_noise_of_the_key(options):
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def function(x, key):
        return drop_block2d(x, (5, 3), keep_prob=KEEP, key=key, **options)

    for layout in ("channels_last", "unbatched"):
        x, gradient = (LAYOUTS[layout](torch.randn(4, 6, 20, 17)) for _ in range(2))
        leaf = x.detach().requires_grad_()
        y = function(leaf, torch.tensor(KEY))
        output, grad_of_input = expected(x, gradient, **options)
        assert torch.equal(y, output)
        assert y.stride() == x.stride()
        y.backward(gradient)
        assert torch.equal(leaf.grad, grad_of_input)


def test_the_default_compiler_makes_one_graph_while_keep_prob_changes():
    torch._dynamo.reset()
    counters.clear()

    def function(x, keep_prob):
        return drop_block2d(x * 2, "30%", keep_prob=keep_prob, key=KEY, share_batch=True, with_noise=True) + 1

    compiled, x = torch.compile(function, fullgraph=True), torch.rand(4, 8, 20, 20).add(1).requires_grad_()
    for keep_prob in torch.tensor([1.0, 0.9, 0.5]):
        y, expected = compiled(x, keep_prob), function(x, keep_prob)
        torch.testing.assert_close(y, expected)
        gradients = (torch.autograd.grad(output.sum(), x)[0] for output in (y, expected))
        torch.testing.assert_close(*gradients)
    assert counters["stats"]["unique_graphs"] == 1


def test_compiled_masks_are_fresh_and_follow_the_seed():
    torch._dynamo.reset()
    layer = DropBlock2d(5, with_noise=True, share_batch=True)
    function = torch.compile(lambda x: (layer(x), layer(x)), backend="aot_eager", fullgraph=True)
    x = torch.ones(8, 8, 20, 20)
    torch.manual_seed(1)
    first, second = function(x)
    torch.manual_seed(1)
    assert not torch.equal(first, second)
    assert torch.equal(first, function(x)[0])


def test_export_of_an_eval_model_has_no_trace_of_the_options():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), DropBlock2d("20%", with_noise=True, share_batch=True)).eval()
    program = torch.export.export(network, (torch.ones(2, 3, 8, 8),))
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [torch.ops.aten.conv2d.default]


# --- the layer ---------------------------------------------------------------------------------------------------


def test_the_layer_is_the_function():
    x = torch.randn(4, 8, 20, 20)
    for options in VARIANTS:
        layer = DropBlock2d(5, keep_prob=0.7, **options)
        for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.manual_seed(1)
            y = each(x)
            torch.manual_seed(1)
            assert torch.equal(y, drop_block2d(x, 5, keep_prob=0.7, **options))
            assert repr(each) == repr(eval(repr(each), vars(torch_dropblock)))


def test_options_can_be_assigned_and_are_checked():
    layer, x = DropBlock2d(3, keep_prob=0.5), torch.randn(4, 8, 12, 12)
    assert repr(layer).endswith("share_channels=False, inplace=False)")
    layer.share_batch, layer.with_noise, layer.scale_by_keep = True, True, False
    assert repr(layer).endswith("inplace=False, share_batch=True, scale_by_keep=False, with_noise=True)")
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    options = {"share_batch": True, "with_noise": True, "scale_by_keep": False}
    assert torch.equal(y, drop_block2d(x, 3, keep_prob=0.5, **options))
    for name in options:
        for bad in (1, None, "yes"):
            with pytest.raises(TypeError, match=f"^{name} must be True or False"):
                setattr(layer, name, bad)
            with pytest.raises(TypeError, match=f"^{name} must be True or False"):
                drop_block2d(x, 3, **{name: bad})
    assert layer._variant == (True, False, True)


def test_a_layer_saved_without_the_options():
    layer = DropBlock2d(3)
    for name in ("share_batch", "scale_by_keep", "with_noise", "_variant", "_own_block"):
        layer.__dict__.pop(name, None)
    assert (layer(torch.ones(2, 8, 12, 12)) == 0).any()
    assert repr(layer) == repr(DropBlock2d(3))


@pytest.mark.parametrize("options", FEW, ids=str)
def test_the_recorded_share_is_the_one_of_the_mask(options):
    layer = DropBlock2d((5, 3), keep_prob=KEEP, **options)
    layer.record = Record(lambda passes: 2 * passes, 100)
    x = torch.randn(4, 8, 20, 20, requires_grad=True)
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert layer.record.dropped() == pytest.approx((gradient == 0).double().mean().item(), abs=1e-12)
    assert (layer.record.units, layer.record.passes) == (math.prod(x.shape), 1)
