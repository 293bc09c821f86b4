"""What timm's own tests ask of its DropBlock holds for the converted layer, and for timm's beside it."""

import warnings

import pytest
import torch
from torch import nn

from torch_dropblock import DropBlock2d, KeepProbSchedule, convert_dropblock

timm = pytest.importorskip("timm", reason="its layers are converted")


def converted(drop_prob, block_size=3, **options):
    model = nn.Sequential(timm.layers.DropBlock2d(drop_prob, block_size, **options))
    convert_dropblock(model)
    assert isinstance(model[0], DropBlock2d)
    return model[0]


@pytest.fixture(params=[timm.layers.DropBlock2d, converted], ids=["timm", "converted"])
def layer(request):
    """A layer of timm, or the one that it becomes."""
    return request.param


@pytest.mark.parametrize("size", [(7, 7), (4, 8), (10, 5), (3, 3), (8, 16), (16, 8), (7, 14), (14, 7)])
@pytest.mark.parametrize("block_size", [2, 3, 4, 5, 6])
def test_any_map_and_any_block_keep_the_shape(layer, size, block_size):
    assert layer(0.1, block_size)(torch.ones(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("drop_prob", [0.0, None])
def test_probability_0_drops_nothing(layer, drop_prob):
    x = torch.ones(2, 3, 8, 8)
    assert torch.equal(layer(drop_prob)(x), x)


def test_the_share_dropped_is_about_the_requested_one(layer):
    y = layer(0.1, 7, scale_by_keep=False)(torch.ones(32, 16, 56, 56))
    assert abs((y == 0).double().mean().item() - 0.1) < 0.03


@pytest.mark.parametrize("options", [{}, {"with_noise": True}, {"scale_by_keep": False}])
def test_inplace_returns_its_input(layer, options):
    x = torch.ones(2, 3, 8, 8)
    assert layer(0.3, inplace=True, **options)(x) is x
    assert not torch.equal(x, torch.ones(2, 3, 8, 8))


@pytest.mark.parametrize("couple_channels", [True, False])
def test_coupled_channels_have_one_pattern(layer, couple_channels):
    y = layer(0.3, 5, couple_channels=couple_channels)(torch.ones(2, 4, 16, 16)) == 0
    assert y.any()
    assert torch.equal(y, y[:, :1].expand_as(y)) == couple_channels
    assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize("couple_channels", [True, False])
@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_noise_stands_where_units_were_dropped_and_nothing_is_scaled(layer, scale_by_keep, couple_channels):
    x = torch.full((8, 4, 16, 16), 100.0)
    y = layer(0.3, 5, with_noise=True, scale_by_keep=scale_by_keep, couple_channels=couple_channels)(x)
    noise = y[y != 100]
    assert 0.1 < len(noise) / y.numel() < 0.6
    assert len(noise.unique()) > 100
    assert abs(noise.mean()) < 0.3
    assert 0.7 < noise.std() < 1.3
    assert torch.equal(y, y[:, :1].expand_as(y)) == couple_channels, "coupled channels have one noise"


def test_kept_units_are_scaled_unless_told_otherwise(layer):
    x = torch.ones(2, 3, 16, 16)
    scaled = layer(0.3, 5)(x)
    assert scaled[scaled > 0].min() > 1
    plain = layer(0.3, 5, scale_by_keep=False)(x)
    assert plain.unique().tolist() == [0, 1]


@pytest.mark.parametrize("options", [{"batchwise": True}, {"fast": False}, {"batchwise": False, "fast": True}])
def test_arguments_that_timm_takes_and_ignores(layer, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(0.3, 5, **options)(torch.ones(2, 4, 16, 16)) == 0
    assert not torch.equal(y[0], y[1])


def test_arguments_that_are_unknown_warn(layer):
    with pytest.warns(UserWarning, match="unexpected keyword argument 'unknown_arg'"):
        layer(0.1, unknown_arg=True)


def test_only_training_drops(layer):
    module, x = layer(0.5), torch.ones(2, 3, 8, 8)
    assert torch.equal(module.eval()(x), x)
    assert not torch.equal(module.train()(x), x)


@pytest.mark.parametrize("options", [{}, {"scale_by_keep": False}, {"with_noise": True}], ids=str)
def test_the_gradient_is_0_where_dropped(layer, options):
    x = torch.ones(2, 3, 16, 16, requires_grad=True)
    y = layer(0.3, 5, **options)(x)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y.detach() == y.max()) or "with_noise" in options
    assert set(x.grad.unique().tolist()) == {0.0, 1.0} or not options


def test_batchwise_before_1_0_23():
    """As its module was: `batchwise` an attribute, no `couple_channels`."""
    theirs = timm.layers.DropBlock2d(0.3, 5)
    theirs.batchwise, theirs.fast = True, False
    for name in ("couple_channels", "scale_by_keep"):
        theirs.__dict__.pop(name, None)
    model = nn.Sequential(theirs)
    convert_dropblock(model)
    y = model(torch.ones(4, 3, 16, 16)) == 0
    assert torch.equal(y, y[:1].expand_as(y))
    assert not torch.equal(y[:, 0], y[:, 1])


def test_a_network_with_all_of_them_trains():
    """As a user ports it: build, convert, schedule, compile."""
    options = {"with_noise": True, "scale_by_keep": False, "batchwise": True}
    model = timm.create_model("resnet18", num_classes=4)
    for group in (model.layer3, model.layer4):
        for block in group:
            block.drop_block = timm.layers.DropBlock2d(0.1, 3, **options)
    layers = convert_dropblock(model)
    assert len(layers) == 4
    assert all(layer.with_noise and not layer.scale_by_keep for layer in layers.values())
    schedule = KeepProbSchedule(model, 2, grow_blocks=True)
    for _ in range(2):
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        schedule.step()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert layers["layer4.0.drop_block"].keep_prob == 0.9
