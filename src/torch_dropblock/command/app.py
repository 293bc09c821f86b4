"""The command `torch-dropblock`, with its subcommands demo, show and rate.

The subcommands import PyTorch, matplotlib and Pillow themselves, so that `--help` and `--version` start quickly.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..pictures.wording import joined, percent
from .bench import bench
from .compare import compare
from .playground import playground
from .summary import summary
from .terminal import (
    BlockSize,
    KeepProb,
    new_console,
    one_line_errors,
    one_thread,
    parsed_block,
    parsed_keep_prob,
    parsed_size,
    print_clamped,
    print_path,
    print_table,
    unwrapped,
    writable,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

LARGEST_SEED = 2**32 - 1
KEYS = 100  # tried by `show` for a mask near the mean


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torch-dropblock {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """See what DropBlock drops, and how much.

    [bold]Examples[/]

    [cyan]torch-dropblock demo[/]  pictures of DropBlock beside Dropout

    [cyan]torch-dropblock show cat.jpg[/]  your own picture under DropBlock

    [cyan]torch-dropblock rate 28x28[/]  the share of a feature map that is dropped

    [cyan]torch-dropblock summary torchvision:resnet50[/]  where the layers of a network are, and what they drop

    [cyan]torch-dropblock bench[/]  what the layer costs on this machine

    [cyan]torch-dropblock compare[/]  which regulariser wins, on real images

    [cyan]torch-dropblock playground[/]  try the settings on a picture, in the browser
    """


# --- demo --------------------------------------------------------------------------------------------------------


@app.command()
@one_line_errors
@one_thread()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures.")] = Path("demo"),
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, metavar="N", help="Random seed; another one draws other masks.")
    ] = 0,
) -> None:
    """Draw DropBlock beside Dropout on a built-in photograph, and measure how much is dropped.

    Of 1,000 masks of each block size, a picture shows the first whose share is near the mean.

    [bold]Examples[/]

    [cyan]torch-dropblock demo[/]

    [cyan]torch-dropblock demo --out pictures --seed 7[/]
    """
    from ..pictures import figures
    from ..pictures.demo import DRAWS, KEEP_PROB, Demo

    out.mkdir(parents=True, exist_ok=True)
    content = Demo(seed)
    with figures.house_style():
        pages = content.pages()
        for name, page in pages.items():
            page.savefig(out / name)
    rows = content.shares()
    console = new_console()
    console.print(f"Share dropped in percent: map of {joined(content.size)}, keep_prob {KEEP_PROB}", style="bold")
    print_table(console, ("block", "γ", "requested", "expected", "measured", "picture", "key"), rows)
    console.print(
        f"measured: the mean over {DRAWS:,} keys, ± its standard error\n"
        "picture:  the one mask in block-sizes.png: the first near the mean, or nearest\n"
        "key:      makes this mask again with drop_block_mask\n"
    )
    for name in pages:
        print_path(console, out / name)


# --- show --------------------------------------------------------------------------------------------------------


@app.command()
@one_line_errors
@one_thread()
def show(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file: PNG, JPEG, WebP, TIFF, GIF, …")],
    block_size: BlockSize = "15",
    keep_prob: KeepProb = "0.7",
    rate: Annotated[
        str,
        typer.Option(metavar="exact|paper", help="exact drops the requested share; paper uses the paper's formula."),
    ] = "exact",
    key: Annotated[
        int | None,
        typer.Option(
            "--key",
            "--seed",
            min=0,
            max=LARGEST_SEED,
            metavar="N",
            show_default="the first near the mean",
            help="Key of the mask, shown as it falls.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The picture to write.", show_default="IMAGE-dropblock.png"),
    ] = None,
) -> None:
    """Draw your own picture beside itself under DropBlock.

    A picture with more than 1024 pixels along a side is scaled down first.

    [bold]Examples[/]

    [cyan]torch-dropblock show cat.jpg[/]

    [cyan]torch-dropblock show cat.jpg --block-size 31x15 --keep-prob 0.5 --key 3 -o cat.pdf[/]
    """
    from ..core import checks, geometry
    from ..pictures import draws, figures
    from ..pictures.photo import read_photo

    wanted = checks.block_size(parsed_block("block_size", block_size), 2)
    keep = checks.probability("keep_prob", parsed_keep_prob(keep_prob))
    kind = checks.rate(rate)
    target = writable(out or Path(f"{image.stem}-dropblock.png"), image)
    photo = read_photo(image)

    size = (photo.shape[1], photo.shape[2])
    block = (min(wanted[0], size[0]), min(wanted[1], size[1]))
    gamma = geometry.seed_probability(size, block, keep, kind)
    expected = 1 - geometry.expected_keep_rate(size, block, gamma)
    chosen = ""
    if key is None:
        tried = (draws.mask_of(key, size, block, keep, kind) for key in range(KEYS))
        key = draws.first_near(map(draws.share_dropped, tried), expected)
        chosen = ", chosen near the mean"
    kept = draws.mask_of(key, size, block, keep, kind)
    dropped = percent(draws.share_dropped(kept))
    with figures.house_style():
        page = figures.photo_page(
            photo,
            {
                "Original": (None, "nothing dropped"),
                f"DropBlock {joined(block)}": (kept, f"this draw {dropped}\non average {percent(expected)}"),
            },
            f"DropBlock on a picture of {joined(size)}",
            f"Keep probability {keep:g}, {kind} γ; key {key}{chosen}.\n{figures.HOLES}\nKept pixels are not rescaled.",
            columns=1 if size[1] > 2 * size[0] else 2,
            scale=max(1, 900 // max(size)),
        )
        page.savefig(target)

    console = new_console()
    console.print(f"Share dropped: picture {size[0]} high and {size[1]} wide, keep_prob {keep:g}", style="bold")
    header = ("block", "γ", "requested", "on average", "this draw", "key")
    shares = (percent(1 - keep), percent(expected), dropped)
    print_table(console, header, [(joined(block), f"{gamma:.4g}", *shares, str(key))])
    print_clamped(console, wanted, block)
    print_path(console, target)


# --- rate --------------------------------------------------------------------------------------------------------


@app.command()
@one_line_errors
def rate(
    size: Annotated[str, typer.Argument(metavar="SIZE", help="The feature map: 28x28, 100 or 8x16x16.")],
    block_size: BlockSize = "7",
    keep_prob: KeepProb = "0.9",
) -> None:
    """Print the share of a feature map that is dropped, with the exact γ and with the paper's.

    [bold]Examples[/]

    [cyan]torch-dropblock rate 28x28 --block-size 7 --keep-prob 0.9[/]

    [cyan]torch-dropblock rate 100 -b 5[/]  a signal

    [cyan]torch-dropblock rate 14x14 -b 30%[/]  a share of the map

    [cyan]torch-dropblock rate 8x16x16 -b 3x5x5[/]  a volume
    """
    from ..core import checks, geometry

    map_size = checks.positive_ints("SIZE", parsed_size("SIZE", size), None)
    wanted = checks.block_size(parsed_block("block_size", block_size), len(map_size))
    keep = checks.probability("keep_prob", parsed_keep_prob(keep_prob))
    block = geometry.clamp(map_size, wanted)
    most_covering = math.prod(min(b, s - b + 1) for s, b in zip(map_size, block, strict=True))

    columns = []
    for kind in checks.RATES:
        gamma = geometry.seed_probability(map_size, block, keep, kind)
        expected = geometry.expected_keep_rate(map_size, block, gamma)
        shares = (1 - keep, 1 - expected, 1 - (1 - gamma) ** most_covering, gamma)
        columns.append([f"{gamma:.4g}", *map(percent, shares)])
    border = "ends" if len(map_size) == 1 else "corners"
    names = (
        "γ, the seed probability",
        "share dropped: requested",
        "expected",
        "most, at the centre",
        f"least, at the {border}",
    )

    console = new_console()
    console.print(f"Map of {joined(map_size)}, blocks of {joined(block)}, keep_prob {keep:g}", style="bold")
    print_table(console, ("", *checks.RATES), list(zip(names, *columns, strict=True)))
    print_clamped(console, wanted, block)


app.command()(one_line_errors(summary))
app.command()(one_line_errors(bench))
app.command()(one_line_errors(compare))
app.command()(one_line_errors(one_thread()(playground)))
for command in app.registered_commands:
    command.help = unwrapped(command.callback.__doc__ or "")
