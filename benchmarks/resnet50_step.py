"""Overhead of DropBlock in a training step of ResNet-50 with layers at the paper's 36 sites.

    python benchmarks/resnet50_step.py                       # 21 rounds on the CPU
    python benchmarks/resnet50_step.py --device cuda --batch 256 --bfloat16 --compile
    python benchmarks/resnet50_step.py --json rows.json

One step is a forward pass, a backward pass and an update by SGD with momentum; in float32, or with `--bfloat16` under
autocast with channels last. The networks take turns, and each round starts with the next one. The overhead is the
median over rounds of the difference from the plain network within a round, as a share of the plain network's step.

The sites are those of the official code in groups 3 and 4: after the batch norm of every convolution and on every
shortcut, with a quarter of the strength in group 3. `insert_dropblock_resnet` inserts our layers into torchvision's
network.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import DropBlock2d as TorchvisionDropBlock

from torch_dropblock import insert_dropblock_resnet
from torch_dropblock.backends import native
from torch_dropblock.bench.measure import OURS, PRODUCT, PYTHON, machine, spread, take_turns

PLAIN = "no layer"
BLOCK_SIZE, KEEP_PROB = 7, 0.9
SITES = ("bn1", "bn2", "bn3", "downsample")


class Product(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input * 1.1


# modification of the plain network
Change = Callable[[nn.Module], object]
PEERS: dict[str, Callable[[float], nn.Module]] = {
    PRODUCT: lambda _: Product(),
    "nn.Dropout": lambda keep_prob: nn.Dropout(1 - keep_prob),
    "torchvision": lambda keep_prob: TorchvisionDropBlock(1 - keep_prob, BLOCK_SIZE),
}


def changes(compiled: bool, device: str) -> dict[str, Change]:
    """Return every contender by name."""

    def ours(inplace: bool = True) -> Change:
        def insert(network: nn.Module) -> None:
            insert_dropblock_resnet(network, keep_prob=KEEP_PROB, block_size=BLOCK_SIZE, inplace=inplace)

        return insert

    all_of_them: dict[str, Change] = {PLAIN: lambda network: None, OURS: ours(), f"{OURS}, inplace=False": ours(False)}
    if native.LIBRARY is not None and device == "cpu" and not compiled:
        all_of_them[PYTHON] = ours()
    return all_of_them | {name: functools.partial(put_layers, make) for name, make in PEERS.items()}


def put_layers(make: Callable[[float], nn.Module], network: nn.Module) -> None:
    """Insert a layer at each site of groups 3 and 4."""
    for _, blocks, keep_prob in groups(network):
        for block in blocks:
            for name in SITES:
                before = getattr(block, name) or nn.Identity()  # an identity shortcut has no module of its own
                setattr(block, name, nn.Sequential(before, make(keep_prob)))


def groups(network: nn.Module) -> list[tuple[int, nn.Sequential, float]]:
    """Return the groups with layers: number, blocks and keep_prob."""
    return [(g, network.get_submodule(f"layer{g}"), 1 - (1 - KEEP_PROB) / 4 ** (4 - g)) for g in (3, 4)]  # type: ignore[misc]


def training_step(
    network: nn.Module, images: Tensor, labels: Tensor, bfloat16: bool, compiled: bool
) -> Callable[[], None]:
    memory_format = torch.channels_last if bfloat16 else torch.contiguous_format
    images = images.to(memory_format=memory_format)
    network.train().to(device=images.device, memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    run = torch.compile(network) if compiled else network

    def step() -> None:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            loss = nn.functional.cross_entropy(run(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(
    batch: int,
    side: int,
    rounds: int,
    device: str,
    bfloat16: bool,
    compiled: bool,
    names: Collection[str] | None = None,
) -> list[dict[str, object]]:
    """Measure one row per network, or per network in `names`."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(1000, (batch,), device=device)
    plain = resnet50(weights=None)
    steps = {}
    for name, change in changes(compiled, device).items():
        if names is not None and name not in names:
            continue
        network = copy.deepcopy(plain)
        change(network)
        steps[name] = training_step(network, images, labels, bfloat16, compiled)
    if PYTHON in steps:
        steps[PYTHON] = native.left_out()(steps[PYTHON])
    times = take_turns(steps, rounds, device)
    peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
    about = {
        "batch": batch,
        "side": side,
        "rounds": rounds,
        "bfloat16": bfloat16,
        "compiled": compiled,
        **machine(device),
    }
    return [
        {
            "layer": name,
            "median_s": statistics.median(t),
            "spread": spread(t),
            "peak_bytes": peaks[name],
            "added": statistics.median((mine - base) / base for mine, base in zip(t, times[PLAIN], strict=True)),
            **about,
        }
        for name, t in times.items()
    ]


def peak_bytes(step: Callable[[], None], device: str) -> int | None:
    """Return the peak GPU memory of a step; it includes all networks, so only differences are meaningful."""
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(options.batch, options.side, options.rounds, options.device, options.bfloat16, options.compile)
    print("| layer at 36 sites | step | added |\n| --- | --- | --- |")
    for row in rows:
        step, added = 1000 * float(str(row["median_s"])), 100 * float(str(row["added"]))
        print(f"| {row['layer']} | {step:.0f} ms | {added:+.1f} % |")
    print(", ".join(f"{name} {value}" for name, value in list(rows[0].items())[5:]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
