"""Parsing of arguments and printing: the parts of the command that are not about DropBlock."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from ..pictures.wording import joined

P = ParamSpec("P")

BlockSize = Annotated[
    str,
    typer.Option(
        "--block-size", "-b", metavar="N", help="Size of a block: 15, 15x9 for height x width, or 30% of the map."
    ),
]
KeepProb = Annotated[
    str, typer.Option("--keep-prob", "-k", metavar="P", help="Probability that a unit is kept, from 0 to 1.")
]

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg")


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Print an error about an argument or a file in one line, and exit with code 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # the reader of a pipe has stopped; typer exits silently
        except OSError as error:
            fail(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error))
        except (TypeError, ValueError, OverflowError) as error:
            fail(str(error))

    return run


def unwrapped(docstring: str) -> str:
    """Join the lines of each paragraph, so that the terminal can wrap them to its width."""
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in inspect.cleandoc(docstring).split("\n\n"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: it takes seconds, while two that wait for each other on a busy machine take a minute."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fail(message: str) -> NoReturn:
    line = Text.assemble(("error: ", "bold red"), " ".join(message.split()))
    Console(stderr=True).print(line, soft_wrap=True)
    raise typer.Exit(2)


def parsed_size(name: str, text: str) -> int | list[int]:
    if not re.fullmatch(r"[0-9]+([x×][0-9]+)*", text.lower()):
        raise ValueError(f"{name} must be whole numbers joined by x, such as 28x28, got {text!r}")
    numbers = [int(number) for number in re.split("[x×]", text.lower())]
    return numbers if len(numbers) > 1 else numbers[0]


def parsed_block(name: str, text: str) -> int | str | list[int | str]:
    parts = re.split("[x×]", text.lower())
    if not all(re.fullmatch(r"[0-9]+|[0-9.]+%", part) for part in parts):
        raise ValueError(
            f"{name} must be whole numbers joined by x, such as 7x7, or shares of the map such as 30%, got {text!r}"
        )
    entries = [part if part.endswith("%") else int(part) for part in parts]
    return entries if len(entries) > 1 else entries[0]


def parsed_keep_prob(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"keep_prob must be a number in [0, 1], got {text!r}") from None


def new_console() -> Console:
    console = Console(highlight=False)
    console.width = console.width or 80  # some terminals report a width of 0
    return console


class Table:
    """A table printed row by row, with the first column left-aligned; no cell is ever cut.

    If it is too wide for the terminal, its headers wrap at blanks. If that is not enough, each row becomes a list with
    one value per line.
    """

    GAP, MARGIN = 2, 1

    def __init__(self, console: Console, header: Sequence[str], widths: Sequence[int]) -> None:
        """Print the header of columns whose cells have these widths."""
        self.console, self.header = console, header
        words = [max([width, *map(len, name.split())]) for name, width in zip(header, widths, strict=True)]
        whole = [max(width, len(name)) for name, width in zip(header, widths, strict=True)]
        self.widths: list[int] = next((fit for fit in (whole, words) if self._total(fit) <= console.width), [])
        console.print()
        if self.widths:
            wrapped = [textwrap.wrap(name, width) for name, width in zip(header, self.widths, strict=True)]
            deepest = max(map(len, wrapped))
            self._print_lines([[""] * (deepest - len(lines)) + lines for lines in wrapped], style="bold")
            self._print("─" * (self._total(self.widths) - self.MARGIN))

    def row(self, cells: Sequence[str]) -> None:
        if self.widths:
            self._print_lines([cell.split("\n") for cell in cells])
            return
        name, *values = cells
        self._print(f"{self.header[0]} {name}".strip().replace("\n", ""))
        longest = max(map(len, self.header))
        for label, value in zip(self.header[1:], values, strict=True):
            self._print(f"  {label:{longest}}  {value}")

    def _total(self, widths: Sequence[int]) -> int:
        return self.MARGIN + sum(widths) + self.GAP * (len(widths) - 1)

    def _print_lines(self, cells: Sequence[Sequence[str]], style: str = "") -> None:
        left, *widths = self.widths
        for first, *others in zip_longest(*cells, fillvalue=""):
            numbers = (f"{cell:>{width}}" for cell, width in zip(others, widths, strict=True))
            self._print((" " * self.GAP).join([f"{first:{left}}", *numbers]), style)

    def _print(self, line: str, style: str = "") -> None:
        self.console.print(Text(" " * self.MARGIN + line.rstrip(), style), soft_wrap=True)


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [
        max((len(line) for cell in column for line in cell.split("\n")), default=0)
        for column in zip(*rows, strict=True)
    ]
    table = Table(console, header, widths)
    for row in rows:
        table.row(row)
    console.print()


def print_clamped(console: Console, wanted: tuple[int, ...], block: tuple[int, ...]) -> None:
    from ..core.geometry import entries_text

    if any(b < w for b, w in zip(block, wanted, strict=True)):  # a share of the map, negative, is never clamped
        console.print(
            f"The block of {joined(entries_text(wanted))} was clamped to {joined(block)}: it is larger than the map."
        )


def print_path(console: Console, path: Path) -> None:
    """Print a path on a line of its own without wrapping, for scripts and clickable terminals."""
    console.print(Text(str(path)), soft_wrap=True)


def one_of(name: str, value: str, allowed: Iterable[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def writable(path: Path, image: Path | None = None) -> Path:
    """Check the path of a picture before the work to draw it starts, and return it."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"the output must end in {', '.join(FORMATS)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} into")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file for the picture")
    if image and path.exists() and image.exists() and path.samefile(image):
        raise ValueError(f"{path} is the picture to read and would be overwritten; name another file")
    return path
