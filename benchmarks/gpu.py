"""Everything that is measured on a GPU, in under eight minutes, most important first: `python benchmarks/gpu.py`.

    python benchmarks/gpu.py                       # rows to benchmarks/results/{layer,resnet50}-gpu-1.json
    python benchmarks/gpu.py --run 2 --minutes 8   # another run; what does not fit into the time is left out, and said

The layer: forward and backward, by the device's own clock, as a multiple of `x * c` on the same tensor, for tensors of
256 MB and more; with the bandwidth that was reached and the bytes that were saved for the backward pass. ResNet-50:
a training step under bfloat16 autocast with channels last and layers at the paper's 36 sites. Every row says on what
device and with which versions. `python -m pytest tests/test_triton_kernel.py` is the test of the same device.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resnet50_step import PLAIN
from resnet50_step import measure as measure_resnet
from torch_dropblock import backend_report, bench
from torch_dropblock.bench import OURS, PRODUCT, Case

RESULTS = Path(__file__).parent / "results"
Rows = list[dict[str, Any]]
# the targets of the design, as multiples of x * c, as shares of a step, and in bytes a call
LAYER, EAGER_STEP, COMPILED_STEP, SAVED = 1.1, 0.025, 0.01, 64


def cases(device: str) -> list[Case]:
    """What tells most first: each kind once, then the other shapes, then compiled code."""
    kinds = (("bfloat16", "contiguous"), ("float32", "contiguous"), ("bfloat16", "channels_last"))
    first, *others = bench.GPU_SHAPES
    eager = [Case(shape, *kind, device=device) for shape in (first, *others) for kind in kinds]
    compiled = [Case(first, *kind, "compiled", device=device) for kind in (kinds[0], kinds[2])]
    return eager[:3] + compiled + eager[3:]


def layer(case: Case, rounds: int) -> Rows:
    rows = bench.measure(case, rounds)
    for row in rows:
        if row.contender == OURS:
            fits = "" if row.ratio <= LAYER and row.saved_bytes <= SAVED else "   over the target"
            speed = f"{row.gigabytes_per_second:.0f} GB/s, {row.saved_bytes} bytes saved"
            print(f"{case}: {row.ratio:.3f}× {PRODUCT}, {speed}{fits}", flush=True)
    torch.cuda.empty_cache()
    return bench.as_json(rows)


def resnet(device: str, batch: int, rounds: int, compiled: bool) -> Rows:
    # torchvision's layer costs a minute of compilation and is no target
    names = [PLAIN, PRODUCT, OURS, *([] if compiled else ["torchvision"])]
    rows = measure_resnet(batch, 224, rounds, device, True, compiled, names)
    target = COMPILED_STEP if compiled else EAGER_STEP
    for row in rows:
        added = float(str(row["added"]))
        fits = "   over the target" if row["layer"] == OURS and added > target else ""
        what = "compiled" if compiled else "eager"
        print(f"ResNet-50, {what}, {row['layer']}: {1000 * float(str(row['median_s'])):.1f} ms, {added:+.2%}{fits}")
    torch.cuda.empty_cache()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", type=int, default=1, help="the number of this run in the names of the files")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, default=256, help="images in a step of ResNet-50")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py measures a CUDA GPU, and PyTorch finds none here")
    start, device = time.monotonic(), options.device
    some = torch.empty(2, 3, 8, 8, device=device)
    print(backend_report(some), *bench.machine(device).items(), sep="\n", flush=True)

    of_layer: list[tuple[str, str, float, Callable[[], Rows]]] = [
        ("layer", str(case), 25 if case.mode == "compiled" else 6, lambda case=case: layer(case, options.rounds))  # type: ignore[misc]
        for case in cases(device)
    ]
    of_network: list[tuple[str, str, float, Callable[[], Rows]]] = [
        ("resnet50", "ResNet-50, eager", 40, lambda: resnet(device, options.batch, options.rounds, False)),
        ("resnet50", "ResNet-50, compiled", 150, lambda: resnet(device, options.batch, options.rounds, True)),
    ]
    found: dict[str, Rows] = {"layer": [], "resnet50": []}
    for kind, name, seconds, measure in (*of_layer[:5], *of_network, *of_layer[5:]):
        left = 60 * options.minutes - (time.monotonic() - start)
        if left < seconds:
            print(f"left out, {math.floor(left)} s are too few: {name}", flush=True)
            continue
        found[kind] += measure()
        (RESULTS / f"{kind}-gpu-{options.run}.json").write_text(json.dumps(found[kind], indent=1) + "\n")
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
