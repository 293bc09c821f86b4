"""`torch-dropblock compare`: which regulariser wins, on real images.

What needs Lightning, torchvision and scikit-learn is imported when the command runs: `--help` does not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import checks
from .terminal import new_console, new_table, print_path

if TYPE_CHECKING:
    from .compare.records import Result
    from .compare.rows import Row

ROWS = "baseline, dropout, droppath, spatial-dropout, cutout, autoaugment, label-smoothing, dropblock"


def _in(panel: str, *flags: str, metavar: str, help: str, **options: Any) -> Any:
    return typer.Option(*flags, metavar=metavar, help=help, rich_help_panel=panel, **options)


WHAT, RECIPE, WHERE = "What is compared", "How it is trained", "Where"


def compare(
    data: Annotated[str, _in(WHAT, metavar="D", help="digits, fashion-mnist, cifar10 or folder:DIR.")] = "digits",
    rows: Annotated[
        str | None,
        _in(
            WHAT,
            "--rows",
            "-r",
            metavar="R,R,…",
            help=f"Of {ROWS}; joined by +, with options: dropblock:block_size=3+cutout.",
        ),
    ] = None,
    seeds: Annotated[int, _in(WHAT, min=1, metavar="N", help="Runs of each row, with seeds 0 to N - 1.")] = 3,
    model: Annotated[
        str | None, _in(WHAT, metavar="M", help="small, or a classification ResNet of torchvision, such as resnet18.")
    ] = None,
    limit_train: Annotated[
        int | None, _in(WHAT, metavar="N", help="Train on N images only, the same for all runs.")
    ] = None,
    keep_prob: Annotated[
        float | None, _in(WHAT, "--keep-prob", "-k", metavar="P", help="Of DropBlock in the last group. [default: 0.9]")
    ] = None,
    block_size: Annotated[
        int | None,
        _in(WHAT, "--block-size", "-b", metavar="N", help="Of DropBlock. [default: the last map's side, at most 7]"),
    ] = None,
    rate: Annotated[str | None, _in(WHAT, metavar="exact|paper", help="γ of DropBlock. [default: exact]")] = None,
    curve: Annotated[
        str | None,
        _in(WHAT, metavar="C", help="linear, cosine, constant or step: how what drops grows. [default: linear]"),
    ] = None,
    preset: Annotated[
        str | None,
        _in(
            RECIPE,
            metavar="P",
            help="quick: 10 epochs. standard: 30. paper: the paper's for ImageNet, 270 epochs of ResNet-50. "
            "[default: quick for digits, standard otherwise]",
        ),
    ] = None,
    epochs: Annotated[int | None, _in(RECIPE, metavar="N", help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, _in(RECIPE, metavar="N", help="Images of a step, over all devices.")] = None,
    learning_rate: Annotated[
        float | None, _in(RECIPE, metavar="F", help="The highest, for 256 images of a batch. [default: 0.1]")
    ] = None,
    weight_decay: Annotated[float | None, _in(RECIPE, metavar="F", help="Of all weights.")] = None,
    decay: Annotated[str | None, _in(RECIPE, metavar="cosine|steps", help="How the learning rate falls.")] = None,
    precision: Annotated[
        str | None, _in(RECIPE, metavar="P", help="32-true, bf16-mixed, 16-mixed or 64-true. [default: 32-true]")
    ] = None,
    image_size: Annotated[
        int | None, _in(RECIPE, metavar="N", help="Side of the images of a folder. [default: 224]")
    ] = None,
    validate_every: Annotated[
        int | None, _in(RECIPE, metavar="N", help="Epochs between validations. [default: 1]")
    ] = None,
    accelerator: Annotated[str, _in(WHERE, metavar="A", help="As for Lightning: auto, cpu, gpu, …")] = "auto",
    devices: Annotated[int, _in(WHERE, min=1, metavar="N", help="Devices of a node.")] = 1,
    nodes: Annotated[int, _in(WHERE, min=1, metavar="N", help="Number of nodes.")] = 1,
    workers: Annotated[int, _in(WHERE, min=0, metavar="N", help="Processes of a device that load images.")] = 0,
    data_dir: Annotated[Path, _in(WHERE, metavar="DIR", help="Folder of fashion-mnist and cifar10.")] = Path("data"),
    download: Annotated[
        bool, typer.Option("--download", rich_help_panel=WHERE, help="Get them, if they are not there.")
    ] = False,
    save_weights: Annotated[
        bool, typer.Option("--save-weights", rich_help_panel=WHERE, help="Keep the weights of each finished run.")
    ] = False,
    out: Annotated[Path, _in(WHERE, "--out", "-o", metavar="DIR", help="Folder for results, table and plots.")] = Path(
        "compare"
    ),
) -> None:
    """Train a network with each regulariser and say which wins: the paper's table, for your data.

    Stopped at any moment, the same command goes on where it was. Several of them at a time with one --out share the
    runs. The default, digits of 8×8 pixels, needs no network and takes minutes on a laptop.

    [bold]Examples[/]

    [cyan]torch-dropblock compare[/]

    [cyan]torch-dropblock compare --data cifar10 --download --rows dropout,dropblock --out cifar[/]

    [cyan]torch-dropblock compare --data folder:photos --model resnet18 --precision bf16-mixed --workers 8[/]

    [cyan]torch-dropblock compare --rows dropblock,dropblock:block_size=2,dropblock:curve=constant --out study[/]
    """
    from .compare import data as images
    from .compare import networks, report, study
    from .compare.records import Records
    from .compare.rows import TABLE_1, parsed
    from .compare.settings import settings_of

    settings = settings_of(
        preset,
        data=data,
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        decay=decay,
        weight_decay=weight_decay,
        precision=precision,
        keep_prob=keep_prob,
        block_size=block_size,
        rate=checks.rate(rate) if rate else None,
        curve=curve,
        limit_train=limit_train,
        image_size=image_size,
        validate_every=validate_every,
    )
    chosen = parsed(rows.split(",") if rows else TABLE_1, settings)
    networks.checked(settings.model)
    source = images.load(settings, data_dir, download)
    records = Records(out, settings)
    console = new_console()
    is_first = study.is_first_process()
    with Watch(console, quiet=not is_first) as watch:
        work = study.Study(
            settings,
            chosen,
            range(seeds),
            source,
            records,
            watch,
            study.Machine(accelerator, devices, nodes, workers),
            save_weights=save_weights,
        )
        watch.expect(work.runs, work.unfinished, work.steps_of_a_run)
        try:
            work.run()
            stopped = False
        except KeyboardInterrupt:
            stopped = True
    if not is_first:
        return
    asked = [row.name for row in chosen]
    results = [result for result in records.results() if result["row"] in asked and result["seed"] < seeds]
    unfinished = len(work.unfinished)
    if unfinished:
        console.print(f"{unfinished} of {len(work.runs)} runs are not finished: the same command goes on with them.")
    if results:
        lines = report.lines_of(results, asked)
        with_top5 = any(line.top5 for line in lines)
        table = new_table(*report.header(lines))
        for line in lines:
            table.add_row(*report.cells(line, with_top5))
        title = f"{settings.data}, {settings.model}, {settings.epochs} epochs"
        console.print(title, style="bold")
        console.print(table)
        console.print(report.NOTE + "\n")
        about = report.about(settings, len(source.train), len(source.val), results)  # type: ignore[arg-type]
        print_path(console, records.write("table.md", report.markdown(lines, about)))
        for path in report.draw(results, asked, title, out):
            print_path(console, path)
    if stopped:
        raise typer.Exit(130)


class Watch:
    """The progress of a study: a bar in a terminal, a line for each finished run elsewhere."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps,"),
            TimeElapsedColumn(),
            TextColumn("so far,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
            disable=quiet,
            speed_estimate_period=300,
        )
        self.task = self.progress.add_task("starting", total=None)
        self._steps = 0

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def expect(self, runs: Sequence[tuple[Row, int]], unfinished: Sequence[tuple[Row, int]], steps: int) -> None:
        self.runs, self._steps = len(runs), steps
        self.progress.update(self.task, total=len(unfinished) * steps)

    def run_starts(self, row: Row, seed: int, steps_done: int) -> None:
        self.progress.update(self.task, description=f"{row.name}, seed {seed}", advance=steps_done)
        self._started = time.monotonic()

    def step_done(self) -> None:
        self.progress.advance(self.task)

    def run_is_others(self, row: Row, seed: int) -> None:
        """Another command trains it."""
        self.progress.update(self.task, advance=self._steps)

    def run_ends(self, result: Result) -> None:
        if not self.quiet:
            name = f"{result['row']}, seed {result['seed']}"
            seconds = time.monotonic() - self._started
            self.progress.console.print(
                f"{name}: top-1 {100 * result['top1']:.2f} % in {seconds:.0f} s", highlight=False
            )
