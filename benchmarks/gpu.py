"""All GPU benchmarks in under eight minutes, the most important first: `python benchmarks/gpu.py`.

    python benchmarks/gpu.py                       # rows to benchmarks/results/{layer,resnet50}-gpu-1.json
    python benchmarks/gpu.py --run 2 --minutes 8   # another run; it reports the cases that it had no time for

It needs this repository (`PYTHONPATH=src` if the package is not installed), PyTorch 2.8 or later with CUDA and its
Triton, torchvision for its ResNet-50, and a C compiler for Triton's launchers. It was run on Python 3.12, PyTorch 2.11
and Triton 3.6. timm is measured if it is installed. Rows are written after each case. A case that fails is reported,
tried again without the peers, and then skipped.

Layer: forward and backward by the device's clock, as a multiple of `x * c` on the same tensor of 256 MB or more; with
the bandwidth and the bytes saved for the backward pass. ResNet-50: a training step under bfloat16 autocast with
channels last and layers at the paper's 36 sites. Every row names its device and versions.
The tests for a GPU are in tests/backends/triton.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnet50_step import PLAIN
from resnet50_step import measure as measure_resnet
from torch_dropblock import backend_report
from torch_dropblock.bench import measure as bench
from torch_dropblock.bench.measure import OURS, PRODUCT, Case

RESULTS = Path(__file__).parent / "results"
Rows = list[dict[str, Any]]
# targets: a multiple of x * c, shares of a step (eager, compiled), and bytes per call
LAYER, EAGER_STEP, COMPILED_STEP, SAVED = 1.1, 0.025, 0.01, 64
OVER = "   over the target"


@dataclass
class Job:
    """A measurement; `measure` takes the names of the contenders, or None for all."""

    kind: str
    name: str
    seconds: float
    measure: Callable[[Collection[str] | None], Rows]
    without_peers: Sequence[str]


def cases(device: str) -> list[Case]:
    """Return the cases by importance: each kind once, then compiled, then the other shapes."""
    kinds = (("bfloat16", "contiguous"), ("float32", "contiguous"), ("bfloat16", "channels_last"))
    first, *others = bench.GPU_SHAPES
    eager = [Case(shape, *kind, device=device) for shape in (first, *others) for kind in kinds]
    compiled = [Case(first, *kind, "compiled", device=device) for kind in (kinds[0], kinds[2])]
    return eager[:3] + compiled + eager[3:]


def layer(case: Case, rounds: int, names: Collection[str] | None) -> Rows:
    rows = bench.measure(case, rounds, names)
    print(case)
    for row in rows:
        over = OVER if row.contender == OURS and (row.ratio > LAYER or row.saved_bytes > SAVED) else ""
        speed = f"{row.median_us / 1000:.3f} ms, {row.gigabytes_per_second:.0f} GB/s, {row.saved_bytes} bytes saved"
        print(f"  {row.contender}: {row.ratio:.3f}× {PRODUCT}, {speed}{over}", flush=True)
    return bench.as_json(rows)


def resnet(device: str, batch: int, side: int, rounds: int, compiled: bool, names: Collection[str] | None) -> Rows:
    rows = measure_resnet(batch, side, rounds, device, True, compiled, names or [PLAIN, PRODUCT, OURS, "torchvision"])
    print(f"a step of ResNet-50, {'compiled' if compiled else 'eager'}")
    for row in rows:
        added = float(str(row["added"]))
        over = OVER if row["layer"] == OURS and added > (COMPILED_STEP if compiled else EAGER_STEP) else ""
        print(f"  {row['layer']}: {1000 * float(str(row['median_s'])):.1f} ms, {added:+.2%}{over}", flush=True)
    return rows


def jobs(device: str, rounds: int, batch: int, side: int = 224) -> list[Job]:
    def of_layer(case: Case) -> Job:
        few = (PRODUCT, OURS, "nn.Dropout")
        if case.mode == "compiled":  # compiling torchvision's and timm's layers takes longer than all the rest
            return Job("layer", str(case), 15, lambda names: layer(case, rounds, names or few), ())
        return Job("layer", str(case), 6, lambda names: layer(case, rounds, names), few)

    def of_network(compiled: bool) -> Job:
        name, seconds = ("ResNet-50, compiled", 200) if compiled else ("ResNet-50, eager", 40)
        # compiling torchvision's layer takes a minute and is not a target: last, and only if all else is done
        names = [PLAIN, PRODUCT, OURS] if compiled else None
        return Job(
            "resnet50",
            name,
            seconds,
            lambda fewer: resnet(device, batch, side, rounds, compiled, fewer or names),
            (PLAIN, PRODUCT, OURS),
        )

    def torchvision_compiled() -> Job:
        peers = (PLAIN, "torchvision")
        return Job(
            "resnet50",
            "ResNet-50, compiled, torchvision",
            120,
            lambda fewer: [
                row for row in resnet(device, batch, side, rounds, True, fewer or peers) if row["layer"] != PLAIN
            ],
            (),
        )

    layers = [of_layer(case) for case in cases(device)]
    return [*layers[:5], of_network(False), of_network(True), *layers[5:], torchvision_compiled()]


def run(todo: Sequence[Job], seconds: float, results: Path, number: int) -> dict[str, Rows]:
    """Run the jobs in order, and write after each, so that a later failure loses nothing."""
    start = time.monotonic()
    found: dict[str, Rows] = {}
    for job in todo:
        left = seconds - (time.monotonic() - start)
        if left < job.seconds:
            print(f"left out, {math.floor(left)} s are too few: {job.name}", flush=True)
            continue
        for names in (None, job.without_peers):
            if names is not None and not names:
                break
            try:
                rows = job.measure(names)
            except Exception as error:  # noqa: BLE001 - no error may stop the other jobs
                print(f"failed: {job.name}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
                torch.compiler.reset()
            else:
                found.setdefault(job.kind, []).extend(rows)
                (results / f"{job.kind}-gpu-{number}.json").write_text(json.dumps(found[job.kind], indent=1) + "\n")
                break
        torch.cuda.empty_cache()
    print(f"{time.monotonic() - start:.0f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", type=int, default=1, help="the number of this run in the names of the files")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, default=256, help="images in a step of ResNet-50")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder that rows are written into")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py measures a CUDA GPU, and PyTorch finds none here")
    options.results.mkdir(parents=True, exist_ok=True)
    some = torch.empty(2, 3, 8, 8, device=options.device)
    print(backend_report(some), *bench.machine(options.device).items(), sep="\n", flush=True)
    run(jobs(options.device, options.rounds, options.batch), 60 * options.minutes, options.results, options.run)


if __name__ == "__main__":
    main()
