"""`torch-dropblock summary`: the layers of a network, and what they drop."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from rich.text import Text

from . import named_models
from .terminal import BlockSize, KeepProb, new_console, one_of, parsed_block, parsed_keep_prob, parsed_size

# resolution of --progress
STEPS = 10**6
# the names in `schedule.CURVES`, repeated so that `--help` need not import PyTorch
CURVES = ("linear", "cosine", "constant", "step")


def summary(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{named_models.FORMS}, built without arguments.")],
    input_size: Annotated[
        str, typer.Option("--input-size", "-i", metavar="N", help="Shape of the input, batch first.")
    ] = "1x3x224x224",
    where: Annotated[
        list[str] | None,
        typer.Option("--where", "-w", metavar="GLOB", help="Insert layers after modules of these names; repeatable."),
    ] = None,
    stages: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Insert layers after the blocks of the last N stages, of any network."),
    ] = None,
    modules: Annotated[
        bool, typer.Option("--modules", help="List the modules that return feature maps instead, and insert nothing.")
    ] = False,
    block_size: BlockSize = "7",
    keep_prob: KeepProb = "0.9",
    rate: Annotated[
        str,
        typer.Option(metavar="exact|paper", help="exact drops the requested share; paper uses the paper's formula."),
    ] = "exact",
    progress: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="P", help="Share of the training that is over, for a schedule."),
    ] = None,
    curve: Annotated[str, typer.Option(metavar="|".join(CURVES), help="The curve of that schedule.")] = "linear",
) -> None:
    """List the DropBlock layers of a network, their sizes, and what each drops.

    Layers are inserted after the modules of --where, in the last --stages or, in a ResNet without layers, at the
    paper's sites.

    [bold]Examples[/]

    [cyan]torch-dropblock summary torchvision:resnet50[/]

    [cyan]torch-dropblock summary timm:resnet18 --progress 0.5[/]  halfway through the training

    [cyan]torch-dropblock summary timm:convnext_tiny --stages 2[/]  any network

    [cyan]torch-dropblock summary timm:convnext_tiny --modules[/]  the places that it has

    [cyan]torch-dropblock summary torchvision:vgg11_bn --where 'features.2[36]'[/]

    [cyan]torch-dropblock summary my_net.py:build -i 1x1x64x64[/]  layers that your own network has
    """
    from ..core import checks
    from ..networks import maps, sites
    from ..networks.insertion import insert_dropblock
    from ..networks.resnet import insert_dropblock_resnet
    from ..networks.schedule import KeepProbSchedule
    from ..networks.stages import insert_dropblock_stages, module_table
    from ..networks.summary import dropblock_summary

    shape = parsed_size("--input-size", input_size)
    if not isinstance(shape, list):
        raise ValueError(f"--input-size must be the shape of the input, such as 1x3x224x224, got {input_size!r}")  # noqa: TRY004
    keep, kind = checks.probability("keep_prob", parsed_keep_prob(keep_prob)), checks.rate(rate)
    block = parsed_block("--block-size", block_size)
    one_of("--curve", curve, CURVES)
    network = named_models.build(model)
    dims = len(block) if isinstance(block, list) else len(shape) - 2
    if modules:
        _print(model, module_table(network, shape, dims, new_console().width))
        return
    if where and stages:
        raise ValueError("--where and --stages exclude each other: name the modules, or let them be found")
    if stages:
        insert_dropblock_stages(network, shape, stages=stages, block_size=block, keep_prob=keep, dims=dims, rate=kind)
    elif where:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", maps.DoubtfulSiteWarning)  # the table shows it in more detail
            insert_dropblock(network, where, block_size=block, keep_prob=keep, dims=dims, rate=kind)
        if caught:
            raise ValueError(caught[0].message)
    elif not sites.present(network):
        checks.block_size(block, 2)
        try:
            insert_dropblock_resnet(network, block_size=block, keep_prob=keep, rate=kind)
        except ValueError as error:
            raise ValueError(f"{error}; here that is --stages 2, and --modules lists its modules") from None
    if progress is not None:
        KeepProbSchedule(network, STEPS, curve=curve, start_step=round(progress * STEPS))
    table = dropblock_summary(network, shape)
    _print(model, table.text(new_console().width))


def _print(model: str, table: str) -> None:
    console = new_console()
    console.print(Text(model, style="bold"))
    console.print(Text(table), soft_wrap=True)
