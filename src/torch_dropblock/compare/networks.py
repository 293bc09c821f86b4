"""Networks of a study: a small ResNet for small images, and torchvision's classification ResNets by name."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

SMALL = "small"
# channels of the first group
WIDTHS = {SMALL: 16, "small-32": 32, "small-64": 64}
# largest side of a small image, which the stem of an ImageNet network would shrink too much
SMALL_IMAGE = 64


class SmallResNet(nn.Module):
    """A ResNet of four blocks for small images, with torchvision's module names.

    The maps of groups 3 and 4 have a half and a quarter of the image's side. On images of 32 pixels they
    are 16 and 8, close to the 14 and 7 of ResNet-50 on 224 pixels, so a block of 7 covers a similar share.

    Args:
        classes: number of classes.
        channels: channels of the image.
        width: channels of the first group; later groups have 2, 4 and 8 times as many.

    Shapes: (N, channels, H, W) to (N, classes).
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _group(width, width, stride=1)
        self.layer2 = _group(width, 2 * width, stride=2)
        self.layer3 = _group(2 * width, 4 * width, stride=1)
        self.layer4 = _group(4 * width, 8 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _group(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride > 1 or channels_in != channels_out:
        convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels_out))
    return nn.Sequential(BasicBlock(channels_in, channels_out, stride, shortcut))


def names() -> list[str]:
    builders = {name: models.get_model_builder(name) for name in models.list_models(module=models)}
    return [*WIDTHS, *(name for name, builder in builders.items() if builder.__module__ == models.resnet.__name__)]


def checked(name: str) -> str:
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"; close to it: {close[0]}" if close else ""
        raise ValueError(f"--model must be one of {', '.join(names())}, got {name!r}{hint}")
    return name


def build(name: str, classes: int, channels: int, side: int) -> nn.Module:
    """Build a network with random weights; torchvision's get a stem for small images if `side` is small.

    Raises:
        ValueError: there is no such network.
    """
    if checked(name) in WIDTHS:
        return SmallResNet(classes, channels, WIDTHS[name])
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    if side <= SMALL_IMAGE:
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return model


def side_of_last_map(name: str, side: int) -> int:
    """Return the side of the maps of group 4 for images of this side."""
    reduction = 4 if name in WIDTHS else 8 if side <= SMALL_IMAGE else 32
    return max(1, -(-side // reduction))
