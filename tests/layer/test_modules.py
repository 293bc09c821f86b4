"""The layers: state, copies, conversions, repr."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_dropblock
from torch_dropblock import DropBlock, DropBlock1d, DropBlock2d, DropBlock3d, drop_block2d

LAYERS = [
    (DropBlock1d(3, keep_prob=0.6), (2, 8, 30)),
    (DropBlock2d((3, 5), keep_prob=0.6, rate="paper"), (2, 8, 12, 13)),
    (DropBlock3d(2, keep_prob=0.6, share_channels=True), (2, 8, 6, 7, 8)),
    (DropBlock(3, 0.6), (2, 8, 12, 13)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda x: type(x).__name__)
def test_training_drops_and_evaluation_does_nothing(layer, shape):
    x = torch.ones(shape)
    y = layer.train()(x)
    assert (y == 0).any()
    assert (y > 1).any()
    state = torch.get_rng_state()
    assert layer.eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda x: type(x).__name__)
def test_unbatched(layer, shape):
    y = layer.train()(torch.ones(shape[1:]))
    assert y.shape == shape[1:]
    assert (y == 0).any()


def test_the_layer_is_the_function():
    x = torch.ones(4, 8, 28, 28)
    layer = DropBlock2d((5, 3), keep_prob=0.7, rate="paper", share_channels=True)
    torch.manual_seed(1)
    a = layer(x)
    torch.manual_seed(1)
    b = drop_block2d(x, (5, 3), keep_prob=0.7, rate="paper", share_channels=True)
    assert torch.equal(a, b)


def test_inplace():
    x = torch.ones(4, 8, 28, 28)
    assert DropBlock2d(7, inplace=True)(x) is x
    assert (x == 0).any()


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda x: type(x).__name__)
def test_copies_are_equal_and_independent(layer, shape):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert repr(other) == repr(layer)
        torch.manual_seed(1)
        a = layer.train()(torch.ones(shape))
        torch.manual_seed(1)
        assert torch.equal(a, other.train()(torch.ones(shape)))
        other.keep_prob = 0.1
        assert layer.keep_prob == 0.6


def test_keep_prob_survives_every_conversion_of_a_module():
    third = 1 / 3
    layer = nn.Sequential(nn.Conv2d(3, 3, 1), DropBlock2d(3, keep_prob=third))
    for convert in (
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("meta"),
        lambda m: m.to_empty(device="cpu"),
        lambda m: m.share_memory(),
    ):
        assert convert(layer)[1].keep_prob == third
    with torch.device("meta"):
        layer = nn.Sequential(nn.Conv2d(3, 3, 1), DropBlock2d(3, keep_prob=third))
    layer.to_empty(device="cpu")
    assert layer[1].keep_prob == third
    nn.init.ones_(layer[0].weight)
    nn.init.ones_(layer[0].bias)
    assert (layer(torch.ones(4, 3, 9, 9)) == 0).any()


def test_compiled_code_sees_keep_prob_in_full_after_every_conversion():
    """The tensor that compiled code reads: float64, on the CPU, real, and fit to be saved for a backward pass."""
    third = 1 / 3
    with torch.inference_mode(), torch.device("meta"):
        layer = DropBlock2d(3, keep_prob=0.5)
        layer.keep_prob = third
    with FakeTensorMode():
        fake = DropBlock2d(3, keep_prob=third)
    for convert in (
        lambda: layer,
        lambda: layer.half(),
        lambda: layer.to("meta"),
        lambda: layer.to_empty(device="cpu"),
        lambda: fake.to_empty(device="cpu"),
    ):
        tensor = convert()._keep_prob_tensor
        assert type(tensor) is torch.Tensor
        assert tensor.device.type == "cpu"
        assert tensor.item() == third
        assert not tensor.is_inference()


def test_a_parameter_is_taken_for_its_value():
    layer = DropBlock2d(3, keep_prob=nn.Parameter(torch.tensor(0.25)))
    assert layer.keep_prob == 0.25
    layer.keep_prob = nn.Parameter(torch.tensor(0.75))
    assert layer.keep_prob == 0.75
    article = DropBlock(3, p=nn.Parameter(torch.tensor(0.5)))
    article.p = nn.Parameter(torch.tensor(0.25))
    assert article.keep_prob == 0.25
    for each in (layer, article):
        assert not each.state_dict()
        assert not list(each.parameters())


def test_block_size_is_the_layers_own():
    given = [3, 5]
    layer = DropBlock2d(given)
    given[0] = 99
    assert layer.block_size == (3, 5)
    assert type(DropBlock2d(np.int64(7)).block_size) is int


def test_there_is_nothing_in_a_state_dict():
    plain, dropping = nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1), DropBlock2d(3))
    assert list(plain.state_dict()) == list(dropping.state_dict())
    assert not list(dropping[1].parameters())
    assert not list(dropping[1].buffers())
    dropping.load_state_dict(plain.state_dict(), strict=True)


def test_repr_tells_everything():
    assert repr(DropBlock2d(7)) == (
        "DropBlock2d(block_size=7, keep_prob=0.9, rate='exact', share_channels=False, inplace=False)"
    )
    layer = DropBlock3d((1, 2, 3), keep_prob=0.25, rate="paper", share_channels=True, inplace=True)
    assert repr(layer) == (
        "DropBlock3d(block_size=(1, 2, 3), keep_prob=0.25, rate='paper', share_channels=True, inplace=True)"
    )
    assert repr(DropBlock(7, 0.8)) == "DropBlock(block_size=7, p=0.8)"
    for other in (layer, DropBlock2d([3, 5]), DropBlock((3, 5), p=0.1)):
        assert repr(eval(repr(other), vars(torch_dropblock))) == repr(other)


@pytest.mark.parametrize("layer_class", [DropBlock1d, DropBlock2d, DropBlock3d])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((0,), {}, ValueError, "block_size must be"),
        ((-3,), {}, ValueError, "block_size must be"),
        ((0.1,), {}, TypeError, "block_size must be .*torchvision"),
        ((True,), {}, TypeError, "block_size must be"),
        (("7",), {}, ValueError, "block_size must be"),
        (("0%",), {}, ValueError, "block_size must be .* share of the map such as '30%'"),
        (((1, 2, 3, 4),), {}, ValueError, "block_size must be"),
        ((7,), {"keep_prob": 1.1}, ValueError, "keep_prob must be"),
        ((7,), {"keep_prob": math.nan}, ValueError, "keep_prob must be"),
        ((7,), {"keep_prob": "0.9"}, TypeError, "keep_prob must be"),
        ((7,), {"rate": "fast"}, ValueError, "rate must be"),
        ((7,), {"share_channels": 1}, TypeError, "share_channels must be"),
        ((7,), {"inplace": 0}, TypeError, "inplace must be"),
        ((0.1, 7), {}, TypeError, r"^DropBlock\dd.__init__\(\) takes 2 positional .*torchvision"),
        ((7,), {"p": 0.1}, TypeError, "unexpected keyword argument 'p'; the block size .*torchvision"),
    ],
)
def test_bad_arguments(layer_class, arguments, options, error, words):
    with pytest.raises(error, match=words):
        layer_class(*arguments, **options)


def test_assigning_keep_prob_is_checked_and_a_bad_one_changes_nothing():
    layer = DropBlock2d(7, keep_prob=0.9)
    for bad, error in ((1.5, ValueError), (math.nan, ValueError), ("0.5", TypeError), (None, TypeError)):
        with pytest.raises(error, match="^keep_prob must be"):
            layer.keep_prob = bad
        assert layer.keep_prob == 0.9
    layer.keep_prob = 0
    assert layer.keep_prob == 0.0
    assert isinstance(layer.keep_prob, float)
    layer.keep_prob = torch.tensor(0.5)
    assert layer.keep_prob == 0.5
    assert isinstance(layer.keep_prob, float)


@pytest.mark.parametrize(
    ("name", "good", "bad", "error"),
    [
        ("block_size", 5, 0, ValueError),
        ("block_size", (5, 3), 0.1, TypeError),
        ("block_size", [5, 3], (1, 2, 3, 4), ValueError),
        ("block_size", np.int64(5), None, TypeError),
        ("rate", "paper", "fast", ValueError),
        ("rate", "paper", None, TypeError),
        ("share_channels", True, 1, TypeError),
        ("inplace", True, "yes", TypeError),
    ],
)
def test_every_attribute_is_checked_when_it_is_assigned(name, good, bad, error):
    layer, x = DropBlock2d(7), torch.ones(4, 8, 28, 28)
    before = repr(layer)
    with pytest.raises(error, match=f"^{name} must be"):
        setattr(layer, name, bad)
    assert repr(layer) == before
    setattr(layer, name, good)
    for each in (layer, copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        arguments = {key: getattr(each, key) for key in ("block_size", "keep_prob", "rate", "share_channels")}
        torch.manual_seed(1)
        y = each(x.clone())
        torch.manual_seed(1)
        assert torch.equal(y, drop_block2d(x, **arguments))
        with pytest.raises(error, match=f"^{name} must be"):
            setattr(each, name, bad)


def test_wrong_rank_at_the_call():
    with pytest.raises(ValueError, match=r"^input must be .*\(N, C, H, W\) or \(C, H, W\), got one of shape \(8, 8\)"):
        DropBlock2d(3)(torch.ones(8, 8))


# --- shares of the map, and blocks that grow ------------------------------------------------------------------------


def test_a_share_of_the_map():
    x = torch.ones(16, 8, 20, 14)
    for share, units in (("30%", (6, 4)), (("25%", 3), (5, 3)), ("1%", (1, 1)), ("100%", (20, 14)), ("7.5%", (1, 1))):
        layer = DropBlock2d(share, keep_prob=0.7)
        assert repr(eval(repr(layer), vars(torch_dropblock))) == repr(layer)
        assert layer.block_size == share
        torch.manual_seed(1)
        y = layer(x)
        torch.manual_seed(1)
        assert torch.equal(y, drop_block2d(x, units, keep_prob=0.7))
    assert DropBlock2d("30.0%").block_size == "30%"
    assert DropBlock("25%", 0.9).calculate_gamma(torch.ones(1, 1, 28, 28)) == pytest.approx(0.1 / 49 * 28**2 / 22**2)
    layer = DropBlock2d("50%", keep_prob=0.5, layout="channels_last")
    assert layer(torch.ones(2, 8, 8, 3)).shape == (2, 8, 8, 3)


def test_a_block_grows_with_the_strength_and_comes_back():
    for given, parts in (
        (7, [(0.0, 1), (0.1, 1), (0.3, 2), (0.5, 3), (0.99, 6), (1.0, 7)]),
        ((5, "40%"), [(0.0, (1, "0.0001%")), (0.5, (2, "20%")), (1.0, (5, "40%"))]),
    ):
        layer = DropBlock2d(given, keep_prob=0.8)
        for strength, part in parts:
            layer.set_strength(strength, grow_block=True)
            assert (layer.block_size, layer.target_block_size) == (part, given)
            assert layer.keep_prob == pytest.approx(1 - 0.2 * strength)
        layer.set_strength(0.5, grow_block=True)
        assert f"block_size={layer.block_size!r}, target_block_size={given!r}, keep_prob=0.9, " in repr(layer)
        assert copy.deepcopy(layer).target_block_size == pickle.loads(pickle.dumps(layer)).target_block_size == given
        layer.set_strength(0.5)
        assert (layer.block_size, layer.target_block_size) == (given, given)
    assert [layer.half()._keep_prob_tensor.shape, layer.set_strength(1.0, grow_block=True)] == [(1,), None]
    layer.block_size = 3
    assert (layer.block_size, layer.target_block_size, layer._keep_prob_tensor.tolist()) == (3, 3, [0.8])


def test_a_growing_block_is_that_of_the_function():
    layer, x = DropBlock2d("50%", keep_prob=0.5), torch.ones(4, 8, 20, 20)
    layer.set_strength(0.5, grow_block=True)
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    assert torch.equal(y, drop_block2d(x, 5, keep_prob=0.75))


# --- the article's layer -----------------------------------------------------------------------------------------


def test_the_articles_p_is_the_keep_probability():
    layer = DropBlock(block_size=7, p=0.8)
    assert layer.p == layer.keep_prob == 0.8
    assert layer.rate == "paper"
    layer.p = 0.3
    assert layer.keep_prob == 0.3
    layer.keep_prob = 0.4
    assert layer.p == 0.4
    assert DropBlock(7).p == 0.5
    with pytest.raises(ValueError, match="^p must be"):
        layer.p = 2
    with pytest.raises(TypeError, match="^p must be"):
        DropBlock(7, "0.5")


@pytest.mark.parametrize(
    ("block_size", "p", "shape", "gamma"),
    [
        (2, 0.5, (1, 8, 16, 16), 0.14222222222222222),  # the article's own example
        (7, 0.9, (3, 28, 28), 0.1 / 49 * 28**2 / 22**2),
        ((7, 3), 0.9, (1, 1, 40, 10), 0.1 / 21 * 400 / (34 * 8)),
        (9, 0.9, (1, 1, 7, 7), 0.1),
    ],
)
def test_calculate_gamma_is_equation_1(block_size, p, shape, gamma):
    assert DropBlock(block_size, p).calculate_gamma(torch.ones(shape)) == pytest.approx(gamma, rel=1e-15)


def test_calculate_gamma_refuses_what_the_layer_refuses():
    with pytest.raises(ValueError, match="^input must be"):
        DropBlock(7).calculate_gamma(torch.ones(7))


def test_repr_tells_the_target_of_a_schedule():
    layer, article = DropBlock2d(7, keep_prob=0.9), DropBlock(7, 0.9)
    for each in (layer, article):
        each.set_strength(0.5)
    assert repr(layer).startswith("DropBlock2d(block_size=7, keep_prob=0.95, target_keep_prob=0.9, ")
    assert repr(article) == "DropBlock(block_size=7, p=0.95, target_keep_prob=0.9)"
