"""Write the tables of README.md, docs/performance.md and docs/evidence.md from committed rows.

    torch-dropblock bench --json benchmarks/results/layer-cpu-1.json
    python benchmarks/compiled.py --json benchmarks/results/compiled-cpu-1.json
    python benchmarks/resnet50_step.py --json benchmarks/results/resnet50-cpu-1.json
    export GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368
    python benchmarks/resnet50_step.py --json benchmarks/results/resnet50-kept-memory-cpu-1.json
    python benchmarks/tables.py

The tables and plots of docs/evidence.md come from the folders in results. `torch-dropblock compare`
wrote their settings.json and results.jsonl, which record how.

Runs of one kind are numbered. A cell is the median over runs, with their minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rates import between_markers
from torch_dropblock.bench.measure import OURS
from torch_dropblock.compare.files import files_of
from torch_dropblock.compare.rows import TABLE_1
from torch_dropblock.compare.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parent
# A GPU takes the same time each round; if the spread exceeds this share of the median, it waited for the host.
LATE = 0.05
Row = dict[str, Any]
# images of the committed studies
CIFAR10 = {"train": 50_000, "val": 10_000}
PICTURES = {
    "accuracy.png": "Top-1 of each run and the mean of each row",
    "curves.png": "Top-1 by epoch, a panel a row",
    "differences.png": "Differences from the baseline with their intervals, a panel for each number",
    "occlusion.png": "Top-1 by hidden share, a panel a row",
    "reliability.png": "Top-1 by confidence, a panel a row",
}


def rows_of(kind: str) -> list[Row]:
    """Return every row of every run of a kind."""
    files = sorted((HERE / "results").glob(f"{kind}-*.json"))
    return [row for file in files for row in json.loads(file.read_text())]


def cell(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    middle, low, high = (format(v, form) for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def machine(row: Row) -> str:
    names = ("torch-dropblock", "processor", "threads", "python", "torch", "torchvision", "timm", "triton", "native")
    return ", ".join(f"{name} {row[name]}" for name in names if name in row)


def layer_table(rows: list[Row], form: str = ".1f", marks: bool = False) -> str:
    """Format one line per case; `marks` marks those in which the GPU waited for the host."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    lines = [
        f"| {' | '.join(['', 'x * c, ms', *names[1:]])} |",
        f"| {' | '.join(['---'] * (len(names) + 1))} |",
    ]
    kinds = dict.fromkeys((row["mode"], row["dtype"], row["layout"]) for row in rows)
    for kind in kinds:
        of_kind = [row for row in rows if (row["mode"], row["dtype"], row["layout"]) == kind]
        shapes = dict.fromkeys(tuple(row["shape"]) for row in of_kind)
        for shape in shapes:
            of_case = [row for row in of_kind if tuple(row["shape"]) == shape]
            product = [row["median_us"] / 1000 for row in of_case if row["contender"] == names[0]]
            ratios = []
            for name in names[1:]:
                of_name = [row for row in of_case if row["contender"] == name]
                late = marks and any(row["spread"] > LATE for row in of_name)
                ratios.append(cell([row["ratio"] for row in of_name], form) + (" †" if late else ""))
            label = f"{'×'.join(map(str, shape))}, {', '.join(kind)}"
            lines.append(f"| {' | '.join([label, cell(product, '.2f'), *ratios])} |")
    return "\n".join(lines)


def step_table(rows: list[Row]) -> str:
    lines = ["| layer at 36 sites | step, ms | added, % |", "| --- | --- | --- |"]
    for name in dict.fromkeys(row["layer"] for row in rows):
        of_layer = [row for row in rows if row["layer"] == name]
        step = cell([1000 * row["median_s"] for row in of_layer], ".0f")
        late = of_layer[0].get("peak_bytes") is not None and any(row["spread"] > LATE for row in of_layer)
        added = cell([100 * row["added"] for row in of_layer], "+.1f") + (" †" if late else "")
        lines.append(f"| {name} | {step} | {added} |")
    return "\n".join(lines)


def short_step_table(rows: list[Row]) -> str:
    """Format what the layers of three libraries add to a step, in the median over runs."""
    lines = [
        "| layers at the paper's 36 places in ResNet-50 | a training step takes longer by |",
        "| --- | --- |",
    ]
    for name in (OURS, "nn.Dropout", "torchvision"):
        added = statistics.median(100 * row["added"] for row in rows if row["layer"] == name)
        lines.append(f"| {name} | {added:.0f} % |")
    return "\n".join(lines)


def compiled_table(rows: list[Row]) -> str:
    """Format one line per case, and the median over all of them."""
    places = list(dict.fromkeys(row["place"] for row in rows))
    lines = [f"| {' | '.join(['as a multiple of x * c', *places])} |", f"| {' | '.join(['---'] * (len(places) + 1))} |"]
    cases = list(dict.fromkeys((tuple(row["shape"]), row["dtype"], row["layout"]) for row in rows))
    of_place = {place: [row for row in rows if row["place"] == place] for place in places}
    for shape, dtype, layout in cases:
        same = {"shape": list(shape), "dtype": dtype, "layout": layout}
        ratios = [[row["ratio"] for row in of_place[place] if row | same == row] for place in places]
        label = f"{'×'.join(map(str, shape))}, {dtype}, {layout}"
        lines.append(f"| {' | '.join([label, *(cell(values, '.2f') for values in ratios)])} |")
    medians = (format(statistics.median(row["ratio"] for row in of_place[place]), ".2f") for place in places)
    return "\n".join([*lines, f"| {' | '.join(['median', *medians])} |"])


def gpu_tables() -> str:
    """Format the results of `benchmarks/gpu.py`."""
    layers, steps = rows_of("layer-gpu"), rows_of("resnet50-gpu")
    parts = [layer_table(layers, ".2f", marks=True), f"{machine(layers[0])}; {layers[0]['rounds']} rounds a run."]
    for compiled in (False, True):
        of_mode = [row for row in steps if row["compiled"] == compiled]
        if of_mode:
            about = f"{'compiled' if compiled else 'eager'}, batch {of_mode[0]['batch']}, bfloat16, channels last"
            parts += [step_table(of_mode), f"{machine(of_mode[0])}; {about}."]
    return "\n\n".join(parts)


def comparison(folder: Path, page: str) -> str:
    """Format the tables of a study, draw its plots into the documentation, and show those that a page does not yet."""
    settings = Settings(**json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    results = [json.loads(line) for line in lines]
    rows = sorted({result["row"] for result in results}, key=lambda row: (TABLE_1.index(row.split(":")[0]), row))
    train = settings.limit_train or CIFAR10["train"]
    files = files_of(settings, results, rows, train, CIFAR10["val"])
    parts = [str(files.pop("table.md")).strip()]
    for name, picture in files.items():
        target = ROOT / "docs" / "images" / f"compare-{folder.name}-{name}"
        target.write_bytes(bytes(picture))  # type: ignore[arg-type]
        link = f"![{PICTURES[name]}](images/{target.name})"
        parts += [link] if link not in page else []
    return "\n\n".join(parts)


def write(page: Path, name: str, content: str) -> None:
    page.write_text(between_markers(page.read_text(encoding="utf-8"), content, name), encoding="utf-8")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    layers, steps, kept = rows_of("layer-cpu"), rows_of("resnet50-cpu"), rows_of("resnet50-kept-memory-cpu")
    page = ROOT / "docs" / "performance.md"
    evidence = ROOT / "docs" / "evidence.md"
    layers_note = f"{machine(layers[0])}; {layers[0]['rounds']} rounds a run"
    of_step = "batch {batch}, images of {side} pixels, float32, {rounds} rounds a run".format_map(steps[0])
    steps_note = f"{machine(steps[0])}; {of_step}"
    write(page, "layers", f"{layer_table(layers)}\n\n{layers_note}.")
    compiled = rows_of("compiled-cpu")
    write(
        page, "compiled", f"{compiled_table(compiled)}\n\n{machine(compiled[0])}; {compiled[0]['rounds']} rounds a run."
    )
    write(page, "steps", f"{step_table(steps)}\n\n{steps_note}.")
    write(page, "kept", f"{step_table(kept)}\n\n{steps_note}.")
    for folder in sorted(path.parent for path in ROOT.glob("results/*/results.jsonl")):
        name = f"compare:{folder.name}"
        rest = between_markers(evidence.read_text(encoding="utf-8"), "", name)
        write(evidence, name, comparison(folder, rest))
    if rows_of("layer-gpu"):
        write(ROOT / "docs" / "kernel.md", "gpu", gpu_tables())
    write(ROOT / "README.md", "cost", f"{short_step_table(steps)}\n\nOn a CPU: {steps_note}.")


if __name__ == "__main__":
    main()
