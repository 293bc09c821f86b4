"""Regularisers for the paper's sites: DropBlock, and layers that call torch's and torchvision's functions.

Each is a layer with a keep_prob, so that one schedule serves all, at the sites of `insert_dropblock_resnet`.
DropPath drops the residual branch of a sample, so it acts at the end of that branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torch import Tensor, nn

from ..core.checks import Rate
from ..layer.modules import DropBlock2d, DropBlockNd
from ..networks import resnet

GROUPS = (3, 4)


class Dropout(DropBlock2d):
    def drop(self, input: Tensor, training: bool, inplace: bool) -> Tensor:
        return nn.functional.dropout(input, 1.0 - self.keep_prob, training, inplace)


class SpatialDropout(DropBlock2d):
    def drop(self, input: Tensor, training: bool, inplace: bool) -> Tensor:
        return nn.functional.dropout2d(input, 1.0 - self.keep_prob, training, inplace)


class DropPath(DropBlock2d):
    def drop(self, input: Tensor, training: bool, inplace: bool) -> Tensor:
        kept: Tensor = torchvision.ops.stochastic_depth(input, 1.0 - self.keep_prob, "row", training)
        return kept


OTHERS: dict[str, type[DropBlockNd]] = {
    "dropout": Dropout,
    "spatial-dropout": SpatialDropout,
    "droppath": DropPath,
}


def insert(model: nn.Module, kind: str, keep_prob: float, block_size: int, rate: Rate) -> None:
    """Insert layers of a kind into a ResNet: at full strength in group 4, at a quarter in group 3."""
    if kind == "dropblock":
        resnet.insert_dropblock_resnet(model, keep_prob=keep_prob, block_size=block_size, groups=GROUPS, rate=rate)
        return
    places = resnet.places(model, GROUPS)
    if kind == "droppath":
        places = _ends_of_branches(places)
    make = OTHERS[kind]
    layers = {
        place.name: make(1, keep_prob=place.keep_prob(keep_prob), inplace=place.follows_batch_norm) for place in places
    }
    resnet.attach(model, layers)


def _ends_of_branches(places: Sequence[resnet.Place]) -> list[resnet.Place]:
    """Return the last norm of each block: `bn2` of a BasicBlock, `bn3` of a Bottleneck."""
    norms = [place for place in places if not place.name.endswith("downsample")]
    last = {place.name.rpartition(".")[0]: place for place in norms}
    return list(last.values())
