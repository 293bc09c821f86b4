"""The command `torch-dropblock`: read what was typed, ask the library, print or draw.

What needs matplotlib or Pillow is imported by the commands that draw: the others and `--help` do not wait for it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, ParamSpec

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import __version__, checks, figures, geometry
from .figures import joined, percent, share_dropped

if TYPE_CHECKING:
    pass

P = ParamSpec("P")

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

BlockSize = Annotated[
    str, typer.Option("--block-size", "-b", metavar="N", help="Size of a block: 15, or 15x9 for height x width.")
]
KeepProb = Annotated[
    str, typer.Option("--keep-prob", "-k", metavar="P", help="Probability that a unit is kept, from 0 to 1.")
]
# PyTorch's generator on the CPU takes 32 bits of a seed
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="The same seed draws the same picture again.")
]


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Say what is wrong with an argument or a file in one line, and exit with 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # whoever was reading has stopped; typer ends without a word
        except OSError as error:
            _fail(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error))
        except (TypeError, ValueError) as error:
            _fail(str(error))

    return run


@contextmanager
def one_thread() -> Iterator[None]:
    """What these commands do takes one thread seconds; two, waiting for each other on a busy machine, take a minute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fail(message: str) -> NoReturn:
    line = Text.assemble(("error: ", "bold red"), " ".join(message.split()))
    Console(stderr=True).print(line, soft_wrap=True)
    raise typer.Exit(2)


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
    """


# --- demo --------------------------------------------------------------------------------------------------------


@app.command()
@one_line_errors
@one_thread()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures.")] = Path("demo"),
    seed: Seed = 0,
) -> None:
    """Draw DropBlock beside Dropout on a built-in photograph, and measure how much is dropped.

    [bold]Examples[/]

    [cyan]torch-dropblock demo[/]

    [cyan]torch-dropblock demo --out pictures --seed 7[/]
    """
    from .demo import KEEP_PROB, MASKS, Demo

    out.mkdir(parents=True, exist_ok=True)
    content = Demo(seed)
    with figures.house_style():
        pages = content.pages()
        for name, page in pages.items():
            page.savefig(out / name)
    table = _table("block", "γ", "asked", "expected", "measured", "picture")
    for row in content.shares():
        table.add_row(*row)
    console = _console()
    console.print(f"Share dropped in percent: map of {joined(content.size)}, keep_prob {KEEP_PROB}", style="bold")
    console.print(table)
    console.print(
        f"measured: the mean over {MASKS:,} independent masks, ± its standard error\n"
        "picture:  the one mask in block-sizes.png, which varies more for large blocks\n"
    )
    for name in pages:
        _print_path(console, out / name)


# --- show --------------------------------------------------------------------------------------------------------


@app.command()
@one_line_errors
@one_thread()
def show(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Any image file that Pillow reads.")],
    block_size: BlockSize = "15",
    keep_prob: KeepProb = "0.7",
    rate: Annotated[
        str, typer.Option(metavar="exact|paper", help="exact drops what is asked; paper uses the paper's formula.")
    ] = "exact",
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The picture to write.", show_default="IMAGE-dropblock.png"),
    ] = None,
) -> None:
    """Draw your own picture beside itself under DropBlock.

    A picture with more than 1024 pixels along a side is scaled down first.

    [bold]Examples[/]

    [cyan]torch-dropblock show cat.jpg[/]

    [cyan]torch-dropblock show cat.jpg --block-size 31x15 --keep-prob 0.5 --seed 3 -o cat.pdf[/]
    """
    from .photo import read_photo

    wanted = checks.positive_ints("block_size", _parsed_size("block_size", block_size), 2)
    keep = checks.probability("keep_prob", _parsed_keep_prob(keep_prob))
    kind = checks.rate(rate)
    target = _writable(out or Path(f"{image.stem}-dropblock.png"), image)
    photo = read_photo(image)

    size = (photo.shape[1], photo.shape[2])
    block = geometry.clamp(size, wanted)
    kept = figures.drop_block_mask(size, block, keep, torch.Generator().manual_seed(seed), kind)
    with figures.house_style():
        page = figures.photo_page(
            photo,
            {"Original": None, f"DropBlock {joined(block)}": kept},
            f"DropBlock on a picture {size[0]} high and {size[1]} wide",
            f"keep probability {keep:g}, {kind} γ, seed {seed}; what is kept is as bright as it was.",
            columns=1 if size[1] > 2 * size[0] else 2,
            scale=max(1, 900 // max(size)),
        )
        page.savefig(target)

    gamma = geometry.seed_probability(size, block, keep, kind)
    expected = 1 - geometry.expected_keep_rate(size, block, gamma)
    table = _table("block", "γ", "asked", "expected", "this picture")
    shares = (percent(share) for share in (1 - keep, expected, share_dropped(kept)))
    table.add_row(joined(block), f"{gamma:.4g}", *shares)
    console = _console()
    console.print(f"Share dropped: picture {size[0]} high and {size[1]} wide, keep_prob {keep:g}", style="bold")
    console.print(table)
    _print_clamped(console, wanted, block)
    _print_path(console, target)


def _writable(path: Path, image: Path) -> Path:
    """The path of a picture to write, checked before there is anything to lose."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"the output must end in {', '.join(FORMATS)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} into")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, it cannot be written as a picture")
    if path.exists() and image.exists() and path.samefile(image):
        raise ValueError(f"{path} is the picture to read, it would be overwritten")
    return path


# --- rate --------------------------------------------------------------------------------------------------------


@app.command()
@one_line_errors
def rate(
    size: Annotated[str, typer.Argument(metavar="SIZE", help="The feature map: 28x28, 100 or 8x16x16.")],
    block_size: BlockSize = "7",
    keep_prob: KeepProb = "0.9",
) -> None:
    """Say which share of a feature map is dropped, with the exact γ and with the paper's.

    [bold]Examples[/]

    [cyan]torch-dropblock rate 28x28 --block-size 7 --keep-prob 0.9[/]

    [cyan]torch-dropblock rate 100 -b 5[/]  a signal

    [cyan]torch-dropblock rate 8x16x16 -b 3x5x5[/]  a volume
    """
    map_size = checks.positive_ints("SIZE", _parsed_size("SIZE", size), None)
    wanted = checks.positive_ints("block_size", _parsed_size("block_size", block_size), len(map_size))
    keep = checks.probability("keep_prob", _parsed_keep_prob(keep_prob))
    block = geometry.clamp(map_size, wanted)
    # two blocks wide is wide enough for the most and the least covered positions of any wider map
    narrow = tuple(min(s, 2 * b) for s, b in zip(map_size, block, strict=True))

    columns = []
    for kind in checks.RATES:
        gamma = geometry.seed_probability(map_size, block, keep, kind)
        keep_rates = geometry.keep_rate_map(narrow, block, gamma)
        kept = (keep, geometry.expected_keep_rate(map_size, block, gamma), keep_rates.min(), keep_rates.max())
        columns.append([f"{gamma:.4g}", *(percent(1 - float(share)) for share in kept)])
    border = "ends" if len(map_size) == 1 else "corners"
    names = (
        "γ, the seed probability",
        "share dropped: asked",
        "expected",
        "most, at the centre",
        f"least, at the {border}",
    )

    table = _table("", *checks.RATES)
    for row in zip(names, *columns, strict=True):
        table.add_row(*row)
    console = _console()
    console.print(f"Map of {joined(map_size)}, blocks of {joined(block)}, keep_prob {keep:g}", style="bold")
    console.print(table)
    _print_clamped(console, wanted, block)


# --- what was typed, and what is printed -------------------------------------------------------------------------


def _parsed_size(name: str, text: str) -> int | list[int]:
    if not re.fullmatch(r"[0-9]+([x×][0-9]+)*", text.lower()):
        raise ValueError(f"{name} must be whole numbers joined by x, such as 28x28, got {text!r}")
    numbers = [int(number) for number in re.split("[x×]", text.lower())]
    return numbers if len(numbers) > 1 else numbers[0]


def _parsed_keep_prob(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"keep_prob must be a number in [0, 1], got {text!r}") from None


def _console() -> Console:
    return Console(highlight=False)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print_clamped(console: Console, wanted: tuple[int, ...], block: tuple[int, ...]) -> None:
    if block != wanted:
        console.print(f"The block of {joined(wanted)} was clamped to {joined(block)}: it is larger than the map.")


def _print_path(console: Console, path: Path) -> None:
    """A line of its own, whole, for a terminal to open or a script to read."""
    console.print(Text(str(path)), soft_wrap=True)
