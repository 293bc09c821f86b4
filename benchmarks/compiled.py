"""Overhead of DropBlock in compiled code on a CPU: alone, and between a batch norm and a ReLU.

    python benchmarks/compiled.py --json benchmarks/results/compiled-cpu-1.json

Each figure is forward and backward together, as a multiple of the same compiled code with `x * c` in the layer's place:
the median over rounds of the ratio within a round. `torch-dropblock bench` measures eager code and the peers.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from torch_dropblock import DropBlock2d
from torch_dropblock.bench.measure import machine, take_turns

SHAPES = ((32, 256, 28, 28), (32, 1024, 14, 14))
KINDS = (
    ("float32", torch.contiguous_format),
    ("bfloat16", torch.contiguous_format),
    ("float32", torch.channels_last),
)
ALONE, BETWEEN = "alone", "between a norm and a ReLU"


class Product(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input * 1.1


def networks(layer: nn.Module, channels: int) -> dict[str, nn.Module]:
    return {ALONE: layer, BETWEEN: nn.Sequential(nn.BatchNorm2d(channels), layer, nn.ReLU())}


def training_pass(network: nn.Module, x: Tensor) -> Callable[[], None]:
    run = torch.compile(network, dynamic=False)
    gradient = torch.randn_like(x)

    def step() -> None:
        x.grad = None
        run(x).backward(gradient)

    return step


def measure(rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        for dtype, layout in KINDS:
            torch.compiler.reset()
            x = torch.randn(shape, dtype=getattr(torch, dtype)).to(memory_format=layout).requires_grad_()
            for place in (ALONE, BETWEEN):
                steps = {
                    name: training_pass(networks(layer, shape[1])[place], x)
                    for name, layer in (("x * c", Product()), ("torch-dropblock", DropBlock2d(7)))
                }
                product, ours = take_turns(steps, rounds).values()
                row: dict[str, object] = {
                    "place": place,
                    "shape": shape,
                    "dtype": dtype,
                    "layout": "channels_last" if layout is torch.channels_last else "contiguous",
                    "product_ms": 1000 * statistics.median(product),
                    "ratio": statistics.median(b / a for a, b in zip(product, ours, strict=True)),
                    "rounds": rounds,
                }
                print(f"{shape}, {dtype}, {row['layout']}, {place}: {row['ratio']:.2f}", flush=True)
                rows.append(row | machine("cpu"))
    for place in (ALONE, BETWEEN):
        ratios = [float(str(row["ratio"])) for row in rows if row["place"] == place]
        print(f"median, {place}: {statistics.median(ratios):.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(options.rounds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
