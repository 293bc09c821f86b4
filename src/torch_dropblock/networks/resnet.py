"""`insert_dropblock_resnet`: insert layers into the ResNets of torchvision and timm where the paper places them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from ..core import checks
from ..core.checks import BlockSize, Rate
from ..core.hints import Layers, hinted
from ..layer.modules import DropBlock2d, DropBlockNd
from . import sites

GROUPS = {1, 2, 3, 4}
# classes whose forward calls these norms, and calls `downsample` on the shortcut if it is not None
BLOCKS = {
    ("torchvision.models.resnet", "BasicBlock"),
    ("torchvision.models.resnet", "Bottleneck"),
    ("timm.models.resnet", "BasicBlock"),
    ("timm.models.resnet", "Bottleneck"),
    ("timm.models.res2net", "Bottle2neck"),
    ("timm.models.resnest", "ResNestBottleneck"),
    ("timm.models.senet", "Bottleneck"),
    ("timm.models.senet", "SEResNetBlock"),
}
NORMS = ("bn1", "bn2", "bns", "bn3")  # a Res2Net has a list of them, one for each part of its channels


@hinted(
    "all but the model are keywords: insert_dropblock_resnet(model, keep_prob=0.9, block_size=7), where keep_prob is "
    "1 minus the share dropped, the p of nn.Dropout"
)
def insert_dropblock_resnet(
    model: nn.Module,
    *,
    keep_prob: float = 0.9,
    block_size: BlockSize = 7,
    groups: Sequence[int] = (3, 4),
    rate: Rate = "exact",
    share_channels: bool = False,
    share_batch: bool = False,
    scale_by_keep: bool = True,
    with_noise: bool = False,
    inplace: bool = True,
) -> dict[str, nn.Module]:
    """Insert DropBlock where the paper's authors place it: after each convolution and on each shortcut of a group.

    After a convolution, the layer acts on the output of its batch norm. On a shortcut, it acts on the projection or
    else on the identity. In group g the share dropped is that of group 4 divided by 4^(4 - g). ResNet-50 gets 36
    layers in groups 3 and 4, ResNet-18 gets 12. The paper increases the share during training: see `KeepProbSchedule`.

    Args:
        model: a ResNet, ResNeXt or Wide ResNet of torchvision or timm, or a Res2Net, ResNeSt or SENet of timm; or a
            part of one that has its groups `layer1` to `layer4`. For other networks use `insert_dropblock_stages`.
        keep_prob: probability that a unit is kept in group 4, in [0, 1].
        block_size: height and width of a block, one for both or two: units, clamped to the map, or `"30%"` of it.
        groups: the groups, from 1 to 4, that get layers.
        rate: `"exact"` or `"paper"`, as for the layer.
        share_channels: one mask per sample for all of its channels.
        share_batch: one mask for all samples.
        scale_by_keep: scale the kept units, or leave them as they are.
        with_noise: standard normal noise where dropped instead of 0.
        inplace: write into the output of a batch norm, whose backward pass does not need it. The outputs of other
            norms and of identity shortcuts are never written into.

    Returns:
        The inserted layers, by the name of the module that each follows.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range; the model is not such a ResNet, is wrapped or compiled, or
            already has layers there. Nothing is inserted then.

    Source: the authors' resnet_model.py; section 4.1 of the paper.
    """
    sites.refuse_wrapped(model, "insert")
    keep_prob = checks.probability("keep_prob", keep_prob)
    checks.flag("inplace", inplace)
    layers: dict[str, DropBlockNd] = {
        place.name: DropBlock2d(
            block_size,
            keep_prob=place.keep_prob(keep_prob),
            rate=rate,
            share_channels=share_channels,
            share_batch=share_batch,
            scale_by_keep=scale_by_keep,
            with_noise=with_noise,
            inplace=inplace and place.follows_batch_norm,
        )
        for place in places(model, groups)
    }
    attach(model, layers)
    return Layers(layers)


class Place(NamedTuple):
    """A place for a layer: after the module of this name, which `attach` creates for an identity shortcut."""

    name: str
    group: int
    follows_batch_norm: bool

    def keep_prob(self, of_group_4: float) -> float:
        return of_group_4 if self.group == 4 else 1.0 - (1.0 - of_group_4) / 4 ** (4 - self.group)


def places(model: nn.Module, groups: Sequence[int]) -> list[Place]:
    """Return the paper's places in a ResNet, in the order of its forward pass."""
    found = []
    for group in _checked(groups):
        for number, block in _blocks(model, group):
            for part in (*_norms(block), "downsample"):
                module = block._modules.get(part) if part == "downsample" else block.get_submodule(part)
                found.append(Place(f"layer{group}.{number}.{part}", group, _ends_with_batch_norm(module)))
    return found


def _norms(block: nn.Module) -> Iterator[str]:
    for name in NORMS:
        norm = getattr(block, name, None)
        if isinstance(norm, nn.ModuleList):
            yield from (f"{name}.{i}" for i in range(len(norm)))
        elif norm is not None:
            yield name


def attach(model: nn.Module, layers: Mapping[str, DropBlockNd]) -> None:
    """Attach layers by the names of `places`; an identity shortcut first gets a module for its layer to follow."""
    parts = [name.rpartition(".") for name in layers]
    blocks = [(model.get_submodule(block), part) for block, _, part in parts]
    identities = [block for block, part in blocks if part == "downsample" and block.downsample is None]
    for block in identities:
        block.downsample = sites.IdentityShortcut().train(block.training)
    try:
        sites.attach(model, layers)
    except BaseException:
        for block in identities:
            del block.downsample
            block.downsample = None  # type: ignore[assignment]
        raise


def _checked(groups: Sequence[int]) -> list[int]:
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        raise TypeError(f"groups must be a sequence of some of 1, 2, 3 and 4, got {groups!r}")
    numbers = {checks.whole_number("groups", group, at_least=1) for group in groups}
    if not groups or len(numbers) < len(groups) or not numbers <= GROUPS:
        raise ValueError(f"groups must be some of 1, 2, 3 and 4, none twice, got {groups!r}")
    return sorted(numbers)


def _blocks(model: nn.Module, group: int) -> list[tuple[str, nn.Module]]:
    blocks = _known_blocks(model, group)
    if not blocks:
        raise ValueError(_no_group(model, group))
    for number, block in blocks:
        if not isinstance(getattr(block, "drop_block", None), nn.Identity | None):
            raise ValueError(  # noqa: TRY004 - the model is of the right type
                f"layer{group}.{number}.drop_block is a {type(block.drop_block).__name__} already; build the model "
                "without drop_block_rate, or replace its layers with convert_dropblock(model)"
            )
    return blocks


def _no_group(model: nn.Module, group: int) -> str:
    """Say which blocks a group has, and what takes them."""
    what, stages = type(model).__name__, "insert_dropblock_stages(model, (1, 3, 224, 224))"
    part = next((name for name, module in model.named_modules() if _known_blocks(module, group)), None)
    if part:
        return f"{what} has no group layer{group} of blocks that are known here; its part model.{part} has"
    members = model._modules.get(f"layer{group}")
    kinds = {type(block) for block in members.children()} if isinstance(members, nn.Sequential) else ()
    if not kinds:
        return f"{what} has no group layer{group} of residual blocks; {stages} takes any network"
    names = " and ".join(sorted(f"{kind.__name__} of {kind.__module__}" for kind in kinds))
    groups = [name for name in ("layer3", "layer4") if isinstance(model._modules.get(name), nn.Sequential)]
    blocks = [f"{name}.{'?' * len(block)}" for name in groups for block, _ in getattr(model, name).named_children()]
    patterns = list(dict.fromkeys(blocks))
    return (
        f"the blocks of {what}.layer{group} are {names}, whose forward is not known here; {stages} puts layers after "
        f"the last blocks, and insert_dropblock(model, {patterns}) after those of {' and '.join(groups)}"
    )


def _known_blocks(model: nn.Module, group: int) -> list[tuple[str, nn.Module]]:
    """Return the blocks of a group, by number; none if the forward of one of their classes is not in BLOCKS."""
    members = model._modules.get(f"layer{group}")
    blocks = list(members.named_children()) if isinstance(members, nn.Sequential) else []
    return blocks if all(_class_of_forward(block) in BLOCKS for _, block in blocks) else []


def _class_of_forward(module: nn.Module) -> tuple[str, str]:
    kind = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return kind.__module__, kind.__name__


def _ends_with_batch_norm(module: nn.Module | None) -> bool:
    if isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    return type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm)
