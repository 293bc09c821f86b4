"""The layers of torchvision and timm become ours with all that they were set to, or nothing is converted."""

import copy
import doctest
import importlib
import re
import sys

import pytest
import torch
from torch import nn

from torch_dropblock import DropBlock2d, DropBlock3d, KeepProbSchedule
from torch_dropblock.networks import sites
from torch_dropblock.networks.conversion import convert_dropblock

timm = pytest.importorskip("timm", reason="its layers are converted")
ops = pytest.importorskip("torchvision.ops", reason="its layers are converted")


def of_timm(drop_prob=0.1, block_size=7, *, without=(), **attributes):
    """Set by attributes, since the arguments differ from version to version."""
    layer = timm.layers.DropBlock2d(drop_prob, block_size)
    for name, value in attributes.items():
        setattr(layer, name, value)
    for name in without:
        layer.__dict__.pop(name, None)
    return layer


def of_torchvision(p=0.1, block_size=7, **options):
    return ops.DropBlock2d(p, block_size, **options)


def in_model(layer):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.BatchNorm2d(8), layer))


def settings(layer):
    return type(layer), layer.block_size, layer.keep_prob, layer.share_channels, layer.inplace, layer.training


def state_of(model):
    return [(name, module, module.training, dict(module.__dict__)) for name, module in model.named_modules()]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (of_torchvision(), (DropBlock2d, 7, 0.9, False, False, True)),
        (of_torchvision(0.25, 3, inplace=True), (DropBlock2d, 3, 0.75, False, True, True)),
        (of_torchvision(1, 5, eps=1e-3), (DropBlock2d, 5, 0.0, False, False, True)),
        (of_torchvision(0, 4).eval(), (DropBlock2d, 4, 1.0, False, False, False)),
        (ops.DropBlock3d(0.2, 3, inplace=True).eval(), (DropBlock3d, 3, 0.8, False, True, False)),
        (of_timm(couple_channels=True), (DropBlock2d, 7, 0.9, True, False, True)),
        (of_timm(0.5, 6, couple_channels=False, inplace=True), (DropBlock2d, 6, 0.5, False, True, True)),
        (of_timm(0.1, 5, gamma_scale=0.25, couple_channels=True).eval(), (DropBlock2d, 5, 0.975, True, False, False)),
        (of_timm(0.25, gamma_scale=4.0, couple_channels=True), (DropBlock2d, 7, 0.0, True, False, True)),
        (of_timm(None, couple_channels=True), (DropBlock2d, 7, 1.0, True, False, True)),
    ],
    ids=repr,
)
def test_settings_are_carried_over(theirs, ours):
    model = in_model(theirs)
    converted = convert_dropblock(model)
    assert list(converted) == ["1.1"]
    assert converted["1.1"] is model[1][1]
    assert settings(model[1][1]) == ours
    assert model[1][1].rate == "exact"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (of_torchvision(), (False, True, False)),
        (of_timm(), (False, True, False)),
        (of_timm(scale_by_keep=False), (False, False, False)),
        (of_timm(with_noise=True), (False, False, True)),
        (of_timm(with_noise=True, scale_by_keep=False), (False, False, True)),
        (of_timm(batchwise=True, fast=True, without=["scale_by_keep"]), (True, True, False)),
        (of_timm(batchwise=True, with_noise=True, without=["scale_by_keep"]), (True, False, True)),
    ],
)
def test_sharing_scaling_and_noise_are_carried_over(theirs, ours):
    """With noise timm scales nothing."""
    model = in_model(theirs)
    convert_dropblock(model)
    layer = model[1][1]
    assert (layer.share_batch, layer.scale_by_keep, layer.with_noise) == ours


@pytest.mark.parametrize("fast", [True, False])
def test_timm_before_1_0_23_draws_for_each_channel(fast):
    layer = of_timm(without=["couple_channels", "scale_by_keep"], batchwise=False, fast=fast)
    model = in_model(layer)
    convert_dropblock(model)
    assert settings(model[1][1]) == (DropBlock2d, 7, 0.9, False, False, True)


class OtherDefaults(ops.DropBlock2d):
    """Not different in what it does."""

    default = 5
    annotated: int = 3

    def __init__(self, p=0.3):
        super().__init__(p, self.default)

    def __repr__(self):
        return f"{type(self).__name__}({self.p})"

    def extra_repr(self):
        return "mine"


class OwnForward(ops.DropBlock3d):
    def forward(self, input):
        return super().forward(input) + 1


class OwnCall(OtherDefaults):
    def __call__(self, input):
        return input


class OwnSchedule(timm.layers.DropBlock2d):
    steps = 0

    @property
    def drop_prob(self):
        return self.steps / 1000

    @drop_prob.setter
    def drop_prob(self, value):
        pass


def test_a_subclass_of_other_defaults():
    model = in_model(OtherDefaults())
    convert_dropblock(model)
    assert settings(model[1][1]) == (DropBlock2d, 5, 0.7, False, False, True)


def with_parts(**parts):
    layer = of_torchvision()
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer


def with_buffer():
    layer = of_torchvision()
    layer.register_buffer("steps", torch.zeros(()), persistent=False)
    return layer


REFUSED = {
    "timm, too strong": (of_timm(0.5, gamma_scale=4.0), "drop_prob * gamma_scale must be a number in [0, 1], got 2.0"),
    "timm, negative": (of_timm(0.5, gamma_scale=-1.0), "drop_prob * gamma_scale must be"),
    "torchvision, p above 1": (of_torchvision(1.5), "p must be a number in [0, 1], got 1.5"),
    "torchvision, p is NaN": (of_torchvision(float("nan")), "p must be a number in [0, 1], got nan"),
    "arguments swapped": (of_torchvision(0.1, 0.5), "block_size must be"),
    "no block": (of_timm(0.1, 0), "block_size must be"),
    "not as its class makes it": (of_timm(without=["gamma_scale"]), "no attribute 'gamma_scale'"),
    "own forward": (OwnForward(0.1, 7), "forward of its own class OwnForward"),
    "own call": (OwnCall(), "__call__ of its own class OwnCall"),
    "own property": (OwnSchedule(), "drop_prob of its own class OwnSchedule"),
    "forward on the instance": (with_parts(forward=abs), "forward, which was set on the layer"),
    "parameter": (with_parts(weight=nn.Parameter(torch.ones(3))), "weight, a parameter, buffer or module"),
    "module": (with_parts(inner=nn.Conv2d(3, 3, 1)), "inner, a parameter, buffer or module"),
    "buffer": (with_buffer(), "steps, a parameter, buffer or module"),
}


@pytest.mark.parametrize(("layer", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_ours_would_not_have_is_refused_by_name(layer, problem):
    model = nn.Sequential(of_torchvision(), in_model(layer), of_timm())
    before = state_of(model)
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        convert_dropblock(model)
    assert "1 layer(s) cannot be converted" in str(caught.value)
    assert "module '1.1.1', a DropBlock" in str(caught.value)
    assert state_of(model) == before


def test_all_layers_that_are_refused_are_named_at_once():
    model = nn.ModuleDict({"a": of_timm(0.1, 0), "b": of_torchvision(), "c": of_torchvision(2.0)})
    with pytest.raises(ValueError, match="2 layer") as caught:
        convert_dropblock(model)
    lines = str(caught.value).splitlines()[1:]
    assert lines[0].startswith("module 'a', a DropBlock2d of timm: block_size must be")
    assert lines[1].startswith("module 'c', a DropBlock2d of torchvision: p must be")
    assert len(lines) == 2
    assert isinstance(model["b"], ops.DropBlock2d)


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_state_dict_post_hook",
    "register_state_dict_pre_hook",
    "register_load_state_dict_pre_hook",
    "register_load_state_dict_post_hook",
]


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_are_refused_by_name(register):
    model = in_model(of_timm())
    handle = getattr(model[1][1], register)(lambda *args: None)
    name = register.removeprefix("register_").removeprefix("full_").replace("state_dict_post", "state_dict", 1)
    name = "load_state_dict_post_hook" if "load_state_dict_post" in register else name
    with pytest.raises(ValueError, match=rf"module '1.1', .*: {name}s \(1\)$"):
        convert_dropblock(model)
    assert isinstance(model[1][1], timm.layers.DropBlock2d)
    handle.remove()
    assert list(convert_dropblock(model)) == ["1.1"]


def test_hooks_of_other_modules_stay():
    model, seen = in_model(of_timm()), []
    model[1].register_forward_hook(lambda *args: seen.append(1))
    convert_dropblock(model)
    model(torch.randn(2, 3, 9, 9))
    assert seen == [1]


def test_one_layer_in_several_places_becomes_one():
    shared = of_torchvision()
    model = nn.ModuleList([nn.Sequential(nn.ReLU(), shared), shared, of_torchvision()])
    model.again = model[0]
    converted = convert_dropblock(model)
    assert list(converted) == ["0.1", "2"]
    assert model[0][1] is model[1] is model.again[1] is converted["0.1"]
    assert model[2] is converted["2"] is not model[1]
    assert not any(isinstance(module, ops.DropBlock2d) for module in model.modules())


@pytest.mark.parametrize("layer", [of_torchvision(0.25, 3), of_timm(0.25, 3, couple_channels=False)])
def test_a_layer_alone_is_no_model(layer):
    with pytest.raises(ValueError, match="the model itself is a DropBlock2d of t.*block_size=3, keep_prob=0.75"):
        convert_dropblock(layer)
    layer.forward = abs
    with pytest.raises(ValueError, match="the model itself, a DropBlock2d of t.*: forward, which"):
        convert_dropblock(layer)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models_are_refused(wrap):
    model = in_model(of_timm())
    with pytest.raises(ValueError, match="convert before wrapping"):
        convert_dropblock(wrap(model))
    assert isinstance(model[1][1], timm.layers.DropBlock2d)


def test_no_model_at_all():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        convert_dropblock([of_timm()])


class DropBlock2dOfSomeoneElse(nn.Module):
    p, block_size, inplace = 0.1, 7, False


DropBlock2dOfSomeoneElse.__name__ = DropBlock2dOfSomeoneElse.__qualname__ = "DropBlock2d"


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), DropBlock2d(7), DropBlock2dOfSomeoneElse()], ids=repr)
def test_a_model_without_such_layers_is_left_alone_with_a_warning(layer):
    model = in_model(layer)
    before = state_of(model)
    with pytest.warns(UserWarning, match="Sequential has no DropBlock layer of torchvision or timm") as caught:
        assert convert_dropblock(model) == {}
    assert caught[0].filename == __file__
    assert state_of(model) == before


def test_converting_twice_finds_nothing_the_second_time():
    model = in_model(of_timm())
    convert_dropblock(model)
    with pytest.warns(UserWarning, match="nothing was converted"):
        convert_dropblock(model)


def test_neither_package_is_imported(monkeypatch):
    model = nn.Sequential(of_torchvision(), of_timm())
    for package in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, package, None)  # from now on importing it fails
    monkeypatch.delitem(sys.modules, "torch_dropblock.networks.conversion")
    conversion = importlib.import_module("torch_dropblock.networks.conversion")
    assert list(conversion.convert_dropblock(model)) == ["0", "1"]


def dropped_shares(layer, size, planes=4096):
    """Of one channel of each sample, so that they are independent if the channels share a mask."""
    return (layer(torch.ones(planes, 2, *size))[:, 0] == 0).double().flatten(1).mean(1)


@pytest.mark.parametrize(
    ("theirs", "size", "asked"),
    [
        (of_timm(0.1, 7), (14, 14), 0.1),
        (of_timm(0.1, 7), (7, 7), 0.1),
        (of_timm(0.1, 6), (28, 28), 0.1),
        (of_timm(0.4, 5, gamma_scale=0.25), (14, 14), 0.1),
        (of_torchvision(0.5, 7), (28, 28), 0.5),
        (ops.DropBlock3d(0.5, 3), (6, 8, 7), 0.5),
    ],
    ids=str,
)
def test_what_is_asked_is_dropped_from_then_on(theirs, size, asked, z_score):
    model = nn.Sequential(theirs)
    assert abs(z_score(dropped_shares(model, size), asked)) > 5
    convert_dropblock(model)
    assert abs(z_score(dropped_shares(model, size), asked)) < 5


def test_a_timm_resnet_end_to_end(z_score):
    torch.manual_seed(0)
    model = timm.create_model("resnet50", drop_block_rate=0.1, num_classes=10, zero_init_last=False)
    theirs = copy.deepcopy(model)
    shared = getattr(model.layer4[0].drop_block, "couple_channels", False)
    converted = convert_dropblock(model)
    groups = {"layer3": (6, 5, 0.975, (14, 14)), "layer4": (3, 3, 0.9, (7, 7))}  # the maps of a picture of 224 pixels
    assert list(converted) == [f"{group}.{i}.drop_block" for group in groups for i in range(groups[group][0])]
    for name, layer in converted.items():
        _, block_size, keep_prob, size = groups[name.partition(".")[0]]
        assert model.get_submodule(name) is layer
        assert settings(layer) == (DropBlock2d, block_size, keep_prob, shared, False, True)
        if ".0." in name:  # the layers of a group are alike
            assert abs(z_score(dropped_shares(layer, size), 1 - keep_prob)) < 5
            assert abs(z_score(dropped_shares(theirs.get_submodule(name), size), 1 - keep_prob)) > 5
    assert sites.find(model).keys() == converted.keys()

    assert list(model.state_dict()) == list(theirs.state_dict())
    model.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(model.state_dict(), strict=True)

    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(x), theirs.eval()(x))
    schedule = KeepProbSchedule(model, total_steps=4)
    schedule.step()
    assert [layer.keep_prob for layer in converted.values()] == pytest.approx([1 - 0.025 / 4] * 6 + [0.975] * 3)
    for _ in range(3):
        schedule.step()

    shares = {"layer3": [], "layer4": []}  # of one channel of each sample, taken before the ReLU writes into the map
    for name, layer in converted.items():
        own = shares[name.partition(".")[0]]
        layer.register_forward_hook(lambda layer, args, y, own=own: own.append((y[:, 0] == 0).double().mean((1, 2))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.layer3[0].conv2.weight.detach().clone()
    model.train()
    model(torch.randn(64, 3, 48, 48)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.layer3[0].conv2.weight, before)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert [len(own) for own in shares.values()] == [6, 3]
    for group, asked in (("layer3", 0.025), ("layer4", 0.1)):
        assert abs(z_score(torch.cat(shares[group]), asked)) < 5


def test_a_layer_inside_a_batch_norm_of_timm():
    model = timm.layers.BatchNormAct2d(8, drop_layer=timm.layers.DropBlock2d)
    assert list(convert_dropblock(model)) == ["drop"]
    assert (model(torch.rand(4, 8, 9, 9) + 1) == 0).any()


def test_the_example_of_the_docstring():
    """`test_examples` skips it, since it also runs where torchvision is not."""
    text = convert_dropblock.__doc__.replace("# doctest: +SKIP", "")
    names = {"nn": nn, "convert_dropblock": convert_dropblock}
    example = doctest.DocTestParser().get_doctest(text, names, "convert_dropblock", None, None)
    result = doctest.DocTestRunner().run(example)
    assert (result.attempted, result.failed) == (3, 0)
