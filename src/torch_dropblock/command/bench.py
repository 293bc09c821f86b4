"""`torch-dropblock bench`: cost of the layer on this machine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..pictures.wording import joined
from .terminal import KeepProb, Table, new_console, one_of, parsed_keep_prob, parsed_size, print_path

if TYPE_CHECKING:
    from ..bench.measure import Case, Row


def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", "-s", metavar="N", help="Shape of the input, 32x256x28x28; repeatable."),
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(metavar="T", help="float32, bfloat16, …; repeatable.")] = None,
    layout: Annotated[
        list[str] | None, typer.Option(metavar="L", help="contiguous or channels_last; repeatable.")
    ] = None,
    mode: Annotated[list[str] | None, typer.Option(metavar="M", help="eager or compiled; repeatable.")] = None,
    block_size: Annotated[int, typer.Option("--block-size", "-b", min=1, metavar="N", help="Size of a block.")] = 7,
    keep_prob: KeepProb = "0.9",
    device: Annotated[str, typer.Option(metavar="D", help="cpu, cuda, cuda:1, …")] = "cpu",
    rounds: Annotated[int, typer.Option(min=3, metavar="N", help="Rounds of the measurement.")] = 11,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all rows with machine and versions.")
    ] = None,
) -> None:
    """Measure the cost of the layer on this machine, beside x * c, nn.Dropout, and torchvision's and timm's layers.

    Costs are of forward and backward together, as multiples of the product x * c on the same tensor. Layers that are
    not installed are left out. Without options, five large shapes are measured eager, and the first of them compiled:
    in float32, in bfloat16, and in float32 with channels last. This takes some minutes. On a GPU, shapes have 256 MB
    and more, channels last is in bfloat16, and times are by the device's clock.

    [bold]Examples[/]

    [cyan]torch-dropblock bench[/]

    [cyan]torch-dropblock bench -s 64x512x7x7 --dtype bfloat16 --mode eager --rounds 21[/]

    [cyan]torch-dropblock bench --device cuda --json rows.json[/]
    """
    import torch

    from ..bench import measure as benchmark
    from ..core import checks

    keep = checks.probability("keep_prob", parsed_keep_prob(keep_prob))
    if json_file and not json_file.parent.is_dir():
        raise ValueError(f"there is no folder {json_file.parent} to write {json_file.name} into")
    wanted = list(
        benchmark.chosen_cases(
            [_input_shape(text) for text in shape or []],
            [one_of("--dtype", name, benchmark.DTYPES) for name in dtype or []],
            [one_of("--layout", name, benchmark.LAYOUTS) for name in layout or []],
            [one_of("--mode", name, benchmark.MODES) for name in mode or []],
            block_size=block_size,
            keep_prob=keep,
            device=device,
        )
    )
    on_cpu = torch.device(device).type == "cpu"
    about = ", ".join(f"{name} {value}" for name, value in benchmark.machine(device).items())
    console = new_console()
    console.print(f"Forward and backward together, block {block_size}, keep_prob {keep:g}", style="bold")
    console.print(about)
    names = list(dict.fromkeys(name for case in wanted for name in benchmark.contenders(case)))
    header, widths = _columns(wanted, names, on_cpu)
    rows: list[Row] = []
    for kind, cases in itertools.groupby(wanted, key=lambda case: case.kind):
        console.print(f"\n{kind}")
        table = Table(console, header, widths)
        for case in cases:
            with Console(stderr=True).status(f"measuring {joined(case.shape)}", refresh_per_second=1):
                measured = benchmark.measure(case, rounds)
            table.row(_cells(case, measured, names, on_cpu))
            rows += measured
            if json_file:  # after each case, so that a later error loses no rows
                json_file.write_text(json.dumps(benchmark.as_json(rows), indent=1) + "\n")
    console.print()
    _print_notes(console, rows, on_cpu)
    if json_file:
        print_path(console, json_file)


def _columns(wanted: Sequence[Case], names: Sequence[str], on_cpu: bool) -> tuple[list[str], list[int]]:
    """Return headers and column widths; with torchvision and timm they fit into 80 columns."""
    from ..bench.measure import OURS, PRODUCT, PYTHON

    short = {OURS: "ours", PYTHON: "in Python", "nn.Dropout": "Dropout"}
    contenders = [short.get(name, name) for name in names[1:]]
    speed = [] if on_cpu else [f"{PRODUCT}, GB/s", "ours, GB/s"]
    shape = max(len(joined(case.shape)) for case in wanted)
    return ["", f"{PRODUCT}, ms", *contenders, *speed], [shape, 8, *(6 for _ in contenders), *(5 for _ in speed)]


def _cells(case: Case, measured: Sequence[Row], names: Sequence[str], on_cpu: bool) -> list[str]:
    from ..bench.measure import OURS, PRODUCT, UNSTABLE

    rows = {row.contender: row for row in measured}
    product = rows[PRODUCT]
    doubt = "?" if product.spread > UNSTABLE else ""
    ratios = [_times(rows[name].ratio) if name in rows else "" for name in names[1:]]
    speed = [] if on_cpu else [f"{row.gigabytes_per_second:.0f}" for row in (product, rows[OURS])]
    return [joined(case.shape), f"{product.median_us / 1000:.2f}{doubt}", *ratios, *speed]


def _print_notes(console: Console, rows: Sequence[Row], on_cpu: bool) -> None:
    from ..bench.measure import OURS, PRODUCT, PYTHON, UNSTABLE

    most = max((row for row in rows if row.contender == OURS), key=lambda row: row.saved_bytes_per_element)
    saved = most.saved_bytes_per_element
    if any(row.contender == PYTHON for row in rows):
        console.print("in Python: ours where its native library is not built.")
    console.print(f"Tensors saved for backward by torch-dropblock: at most {saved:.2g} bytes per element.")
    if not on_cpu:
        console.print(f"That is {most.saved_bytes} bytes a call. GB/s: of the memory that has to move, by device time.")
    if any(row.spread > UNSTABLE for row in rows if row.contender == PRODUCT):
        console.print("?: the baseline varied by more than 20 %; use more --rounds or a less busy machine.")


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.2f}×"


def _input_shape(text: str) -> tuple[int, ...]:
    from ..core import checks

    numbers = parsed_size("--shape", text)
    if not isinstance(numbers, list) or not 3 <= len(numbers) <= 5:
        raise ValueError(f"--shape must be 3 to 5 numbers, batch and channels first, such as 32x64x28x28, got {text!r}")
    return checks.positive_ints("--shape", numbers, len(numbers))
