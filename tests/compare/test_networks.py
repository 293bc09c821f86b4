"""The networks that are compared."""

import pytest
import torch
import torchvision

from torch_dropblock import insert_dropblock_resnet
from torch_dropblock.compare import networks


def test_torchvisions_resnets_are_known_by_name():
    names = networks.names()
    assert names[:3] == ["small", "small-32", "small-64"]
    assert {"resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"} < set(names)
    assert all(isinstance(torchvision.models.get_model(name), torchvision.models.ResNet) for name in names[3:5])


@pytest.mark.parametrize(("name", "hint"), [("resnet19", "; close to it: resnet1"), ("vgg11", "$"), ("Small", "small")])
def test_an_unknown_network_is_refused(name, hint):
    with pytest.raises(ValueError, match=f"model must be one of small, .*, got '{name}'.*{hint}"):
        networks.build(name, 10, 3, 32)


@pytest.mark.parametrize("name", ["small", "small-32", "resnet18"])
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 32), (3, 64), (1, 72), (3, 96)])
def test_images_of_any_size_and_their_last_map(name, channels, side):
    model = networks.build(name, 7, channels, side).eval()
    sides = {}
    for group in (2, 3, 4):
        model.get_submodule(f"layer{group}").register_forward_hook(
            lambda module, args, output, group=group: sides.update({group: output.shape[-1]})
        )
    assert model(torch.zeros(2, channels, side, side)).shape == (2, 7)
    assert sides[4] == networks.side_of_last_map(name, side)
    if name == "small":
        assert sides[3] == sides[2] == -(-side // 2)


def test_the_small_network_takes_layers_as_torchvisions_do():
    layers = insert_dropblock_resnet(networks.build("small", 10, 3, 32))
    # two norms and a projection, for one block in each of two groups
    assert list(layers) == [f"layer{group}.0.{part}" for group in (3, 4) for part in ("bn1", "bn2", "downsample")]


def test_photographs_have_torchvisions_own_stem():
    model = networks.build("resnet18", 10, 3, 224)
    assert (model.conv1.kernel_size, model.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(model.maxpool, torch.nn.MaxPool2d)
    small = networks.build("resnet18", 10, 3, 32)
    assert (small.conv1.kernel_size, small.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(small.maxpool, torch.nn.Identity)


@pytest.mark.parametrize(("name", "width"), [("small", 16), ("small-32", 32), ("small-64", 64)])
def test_small_networks_differ_in_width(name, width):
    model = networks.build(name, 10, 3, 32)
    assert (model.conv1.out_channels, model.fc.in_features) == (width, 8 * width)
