"""`torch-dropblock compare`: a comparison of regularisers on real images.

PyTorch and Lightning are imported when the command runs, so that `--help` starts quickly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from .terminal import new_console, one_thread, print_path, print_table

if TYPE_CHECKING:
    from ..compare.measure_report import Table
    from ..compare.report import Line
    from ..compare.study import Study

ROWS = (
    "baseline, dropout, droppath, spatial-dropout, cutout, autoaugment, label-smoothing and dropblock, joined by +, "
    "with options after a colon: dropblock:block_size=3+cutout. Options: keep_prob and curve of all that drop, "
    "block_size and rate of dropblock, area of cutout, amount of label-smoothing."
)
MEASURES = (
    "Measure more of each trained network: occlusion, corruption, calibration, uncertainty and parts, joined "
    "by commas, or all."
)

# width of a row's name without and with top-5; the paper's rows then fit into 80 columns
NAME_WIDTHS = (16, 12)


def _in(panel: str, *flags: str, metavar: str, help: str, **options: Any) -> Any:
    return typer.Option(*flags, metavar=metavar, help=help, rich_help_panel=panel, **options)


def _recipe(metavar: str, help: str, default: str) -> Any:
    return _in(RECIPE, metavar=metavar, help=help, show_default=default)


WHAT, RECIPE, WHERE = "What is compared", "How it is trained", "Where"


def compare(
    context: typer.Context,
    data: Annotated[str, _in(WHAT, metavar="D", help="digits, fashion-mnist, cifar10 or folder:DIR.")] = "digits",
    rows: Annotated[
        str | None,
        _in(WHAT, "--rows", "-r", metavar="R,R,…", help=ROWS, show_default="the paper's nine"),
    ] = None,
    seeds: Annotated[int, _in(WHAT, metavar="N", help="Runs of each row, with seeds 0 to N - 1.")] = 3,
    measure: Annotated[
        str | None,
        _in(WHAT, "--measure", "-m", metavar="M,M,…", help=MEASURES, show_default="accuracy only"),
    ] = None,
    model: Annotated[
        str | None,
        _in(
            WHAT,
            metavar="M",
            help="small, small-32, small-64, or a classification ResNet of torchvision, such as resnet18.",
            show_default="small; resnet50 for folders",
        ),
    ] = None,
    limit_train: Annotated[
        int | None,
        _in(WHAT, metavar="N", help="Train on N images only, the same for all runs.", show_default="all"),
    ] = None,
    keep_prob: Annotated[
        float | None,
        _in(
            WHAT, "--keep-prob", "-k", metavar="P", help="keep_prob of DropBlock in the last group.", show_default="0.9"
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        _in(
            WHAT,
            "--block-size",
            "-b",
            metavar="N",
            help="Block size of DropBlock.",
            show_default="the side of the last map, at most 7",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        _in(
            WHAT,
            metavar="exact|paper",
            help="exact drops the requested share; paper uses the paper's formula.",
            show_default="exact",
        ),
    ] = None,
    curve: Annotated[
        str | None,
        _in(
            WHAT,
            metavar="C",
            help="How the share that is dropped grows: linear, cosine, constant or step.",
            show_default="linear",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        _in(
            RECIPE,
            metavar="P",
            help="quick: 6 epochs, batches of 64. standard: 30 of 128. paper: the paper's recipe for ImageNet, "
            "ResNet-50 and 270 epochs of 1024. The options below change it.",
            show_default="quick for digits, else standard",
        ),
    ] = None,
    epochs: Annotated[int | None, _recipe("N", "Passes over the training images.", "the preset's")] = None,
    batch_size: Annotated[int | None, _recipe("N", "Images per step, over all devices.", "the preset's")] = None,
    learning_rate: Annotated[
        float | None, _recipe("F", "Highest learning rate for a batch of 256; it scales with the batch size.", "0.1")
    ] = None,
    weight_decay: Annotated[
        float | None, _recipe("F", "Weight decay of all parameters.", "0.0005; of paper 0.0001")
    ] = None,
    decay: Annotated[
        str | None, _recipe("cosine|steps", "How the learning rate falls.", "cosine; of paper steps")
    ] = None,
    precision: Annotated[
        str | None, _recipe("P", "32-true, bf16-mixed, 16-mixed or 64-true.", "32-true; of paper bf16-mixed")
    ] = None,
    image_size: Annotated[int | None, _recipe("N", "Side of the images of a folder.", "224")] = None,
    validate_every: Annotated[int | None, _recipe("N", "Epochs between validations.", "1")] = None,
    accelerator: Annotated[str, _in(WHERE, metavar="A", help="Lightning's accelerator: auto, cpu, gpu, …")] = "auto",
    devices: Annotated[
        int | None, _in(WHERE, metavar="N", help="Devices per node.", show_default="torchrun's, else 1")
    ] = None,
    nodes: Annotated[
        int | None, _in(WHERE, metavar="N", help="Number of nodes.", show_default="torchrun's, else 1")
    ] = None,
    workers: Annotated[int, _in(WHERE, metavar="N", help="Processes per device that load the images of a folder.")] = 0,
    data_dir: Annotated[Path, _in(WHERE, metavar="DIR", help="Folder of fashion-mnist and cifar10.")] = Path("data"),
    download: Annotated[
        bool, typer.Option("--download", rich_help_panel=WHERE, help="Download the data set if it is missing.")
    ] = False,
    save_weights: Annotated[
        bool, typer.Option("--save-weights", rich_help_panel=WHERE, help="Keep the weights of each finished run.")
    ] = False,
    out: Annotated[Path, _in(WHERE, "--out", "-o", metavar="DIR", help="Folder for results, table and plots.")] = Path(
        "compare"
    ),
) -> None:
    """Train a network with each regulariser and compare them: the paper's table, for your data.

    If it is stopped, the same command resumes where it stopped. Commands that run at the same time with one --out share
    the runs. The default, digits of 8×8 pixels, needs no network and takes minutes on a laptop.

    [bold]Examples[/]

    [cyan]torch-dropblock compare[/]

    [cyan]torch-dropblock compare --data cifar10 --download --rows dropout,dropblock --out cifar[/]

    [cyan]torch-dropblock compare --data folder:photos --model resnet18 --precision bf16-mixed --workers 8[/]

    [cyan]torch-dropblock compare --rows dropblock,dropblock:block_size=2,dropblock:curve=constant --out study[/]
    """
    from ..compare import data as images
    from ..compare import distributed, measure_report, networks, report, study
    from ..compare.files import files_of
    from ..compare.image_file import UnreadableImageError
    from ..compare.measures.choice import chosen as measures_chosen
    from ..compare.progress import StudyProgress
    from ..compare.records import Records
    from ..compare.rows import TABLE_1, parsed
    from ..compare.settings import NAMES, settings_of
    from ..core import checks

    checks.whole_number("--seeds", seeds, at_least=1)
    settings = settings_of(preset, **{name: context.params[name] for name in NAMES})
    measures = measures_chosen(measure)
    chosen = parsed(TABLE_1 if rows is None else rows.split(","), settings)
    networks.checked(settings.model)
    per_node, nodes_there = distributed.launched_with()
    devices, nodes = per_node if devices is None else devices, nodes_there if nodes is None else nodes
    machine = distributed.Machine(accelerator, devices, nodes, workers)
    source = images.load(settings, data_dir, download)
    records = Records(out, settings, measures)
    console = new_console()
    stop = distributed.Stop()
    is_first = machine.processes == 1 or distributed.is_first_process()
    with StudyProgress(Console(stderr=True), quiet=not is_first) as progress:
        work = study.Study(
            settings, chosen, range(seeds), source, records, progress, machine, save_weights=save_weights
        )
        progress.note(source.notes)
        progress.expect(len(work.runs), len(work.unfinished), work.steps_of_a_run)
        try:
            with stop.listening():
                if settings.data == "digits" and settings.model == networks.SMALL and machine.processes == 1:
                    _run_tiny(work)
                else:
                    work.run()
            stopped = False
        except KeyboardInterrupt:
            stopped = True
        except UnreadableImageError as error:
            progress.note(error.files if len(error.files) > 1 else ())
            raise
    code = 128 + stop.signal if stopped else 0
    if not is_first:
        raise typer.Exit(code)
    asked = [row.name for row in chosen]
    results = [result for result in records.results() if result["row"] in asked and result["seed"] < seeds]
    unfinished = len(work.unfinished)
    if unfinished:
        what_now = "the same command resumes them" if stopped else "another command trains them"
        console.print(f"{unfinished} of {len(work.runs)} runs are not finished: {what_now}.")
    lacking = [f"{result['row']} with seed {result['seed']}" for result in results if records.missing(result)]
    if lacking:
        console.print(f"Not measured, since --save-weights did not keep the weights: {', '.join(lacking)}.")
    if results:
        _print_table(console, report.lines_of(results, asked), report.title_of(settings))
        for table in measure_report.tables(results, asked):
            _print_measure(console, table)
        counts = source.counts
        for name, content in files_of(settings, results, asked, counts["train"], counts["val"]).items():
            print_path(console, records.write(name, content))
    raise typer.Exit(code)


def _run_tiny(work: Study) -> None:
    """Use one thread, since with 8×8 pixels a second one mostly waits, and a second process if it saves time."""
    from ..compare import side_by_side

    unfinished = work.unfinished
    with one_thread():
        if len(unfinished) < 2 or not side_by_side.worth_it(len(unfinished) * work.steps_of_a_run):
            work.run()
            return
        shared = side_by_side.Work(
            work.settings,
            [row.name for row in work.rows],
            work.seeds,
            work.records.path,
            work.records.measures,
            work.machine.accelerator,
            work.save_weights,
        )
        with side_by_side.helped(shared) as process:
            work.run()
            process.join()
            work.run()  # what a process that failed has left


def _print_table(console: Console, lines: list[Line], title: str) -> None:
    from ..compare import report

    with_top5 = any(line.top5 for line in lines)
    rows = []
    for line in lines:
        name, *values = report.cells(line, with_top5)
        rows.append([report.wrapped(name, NAME_WIDTHS[with_top5]), *values])
    console.print(Text(title, style="bold"))
    header = [name.replace("/", " / ") for name in report.header(lines)]  # lets the header wrap in a narrow terminal
    print_table(console, header, rows)
    console.print(report.NOTE + "\n")


def _print_measure(console: Console, table: Table) -> None:
    from ..compare import report

    console.print(Text(table.title, style="bold"))
    rows = [[report.wrapped(name, NAME_WIDTHS[0]), *values] for name, *values in table.rows]
    print_table(console, table.header, rows)
    console.print(table.note + "\n")
