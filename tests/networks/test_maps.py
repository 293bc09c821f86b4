"""What is said against a place, by the type of its module and by a probe; and of which places nothing is said."""

import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from torch_dropblock import DropBlock2d, DropBlock3d, dropblock_summary, insert_dropblock
from torch_dropblock.networks import maps


def told(model, where, **options):
    """The warnings of an insertion."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        insert_dropblock(model, where, **options)
    assert {warning.category for warning in caught} <= {maps.DoubtfulSiteWarning}
    assert {warning.filename for warning in caught} <= {__file__}
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 4), nn.LayerNorm(4), nn.RMSNorm(4), nn.Embedding(4, 4), nn.Flatten(), nn.LSTM(4, 4),
        nn.MultiheadAttention(4, 1),
    ],
)  # fmt: skip
def test_types_that_return_no_map(module):
    (message,) = told(nn.Sequential(nn.Conv2d(3, 4, 1), module), "?")
    assert message.startswith("these modules return no feature map, or one with the channels last")
    assert f": '1' ({type(module).__name__}); name modules" in message


def test_many_are_counted():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9)))
    (message,) = told(model, "*")
    assert "'5' (Linear) and 3 others; name" in message


@pytest.mark.parametrize(
    "norm", [torchvision.models.convnext.LayerNorm2d(8), timm.layers.LayerNorm2d(8), nn.BatchNorm2d(8), nn.Identity()]
)
def test_types_that_tell_nothing_or_nothing_bad(norm):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 8, 1))
    assert told(model, "1") == []
    assert not dropblock_summary(model, (1, 3, 16, 16)).rows[0].channels_last


@pytest.mark.parametrize(
    ("pool", "is_point"),
    [
        (nn.AdaptiveAvgPool2d(1), True), (nn.AdaptiveMaxPool2d((1, 1)), True), (nn.AdaptiveAvgPool2d(7), False),
        (nn.AdaptiveAvgPool2d((1, None)), False), (nn.AvgPool2d(2), False),
    ],
)  # fmt: skip
def test_global_poolings(pool, is_point):
    assert ["maps of one unit" in message for message in told(nn.Sequential(pool), "0")] == [True] * is_point


def test_a_warning_that_is_an_error_inserts_nothing():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(maps.DoubtfulSiteWarning):
        insert_dropblock(model, "0")
    assert not model[0]._forward_hooks


def test_a_container_and_its_last_member():
    def build():
        return nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())), nn.ReLU())

    assert [message.partition(" return")[0] for message in told(build(), "0*")] == [
        "the container '0' and its last member '0.1'",
        "the container '0.1' and its last member '0.1.1'",
    ]
    assert "the container '0' and its last member '0.1.1'" in told(build(), ["0", "0.1.1"])[0]
    assert told(build(), ["0", "0.0", "0.1.0", "1"]) == []
    model = build()
    assert told(model, "0") == []
    assert len(told(model, "0.1.1")) == 1
    assert told(model, "0.0") == []


def test_swin_returns_channels_last():
    model = torchvision.models.swin_t()
    told(model, ["features.1", "features.1.0.norm1", "features.1.0.stochastic_depth", "features.0.0"])
    rows = {row.name: row.channels_last for row in dropblock_summary(model, (1, 3, 64, 96)).rows}
    assert rows == {
        "features.0.0": False,
        "features.1": True,
        "features.1.0.norm1": True,
        "features.1.0.stochastic_depth": True,
    }


@pytest.mark.parametrize(
    ("shape", "image", "turned"),
    [
        ((768, 7, 7), (224, 224), False),
        ((7, 7, 768), (224, 224), True),
        ((8, 4, 768), (256, 128), True),
        ((7, 5, 96), (100, 75), True),
        ((512, 1, 1), (32, 32), False),
        ((1, 1, 512), (32, 32), True),
        ((64, 64, 250), (64, 500), False),
        ((7, 7, 7), (224, 224), False),
        ((8, 32, 7, 7), (16, 64, 64), False),
        ((4, 7, 7, 96), (16, 32, 32), True),
    ],
)
def test_proportions(shape, image, turned):
    dims = len(image)
    probe = maps.Probe("x", DropBlock2d(3) if dims == 2 else DropBlock3d(3), {}, [torch.ones(1, 3, *image)])
    probe(nn.Identity(), (), {}, torch.ones(1, *shape))
    assert probe.channels_last is turned


def test_the_input_of_other_dimensions_tells_nothing():
    probe = maps.Probe("x", DropBlock2d(3), {}, [torch.ones(1, 10)])
    probe(nn.Identity(), (), {}, torch.ones(1, 7, 7, 96))
    assert not probe.channels_last


class Block(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return self.relu(y)


@pytest.mark.parametrize("inplace", [False, True])
def test_one_map_with_two_layers(inplace):
    """Not what an operation in place has made another map of."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Block(inplace), nn.Identity(), nn.Conv2d(8, 8, 1))
    assert told(model, "*") == []
    rows = {row.name: row.same_map_as for row in dropblock_summary(model, (1, 3, 8, 8)).rows}
    assert rows == {
        "0": None, "1": "1.relu", "1.conv": None, "1.norm": "1.conv", "1.relu": None, "2": "1", "3": None,
    }  # fmt: skip


def test_layers_of_another_layout_are_not_doubted():
    model = nn.Sequential(nn.Linear(3, 8))
    assert list(maps.doubts(model, ["0"]))
    assert not list(maps.doubts(model, ["0"], "channels_last"))
    probe = maps.Probe("0", DropBlock2d(3, layout="channels_last"), {}, [torch.ones(1, 3, 8, 12)])
    probe(model[0], (), {}, torch.ones(1, 8, 12, 16))
    assert probe.sizes == [(8, 12)]
    assert not probe.channels_last
