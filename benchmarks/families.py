"""Where `insert_dropblock_stages` puts layers in each family of timm and torchvision: one small network of each.

    python benchmarks/families.py                            # print the table
    python benchmarks/families.py --write docs/families.md   # also write it between the markers in that file
    python benchmarks/families.py --verify --only resnet     # also train a step, of the families whose names have this

`--verify` takes a training step of each network with two images: gradients are finite, every layer runs and drops the
share that was asked for, weights load strictly both ways, and after removal the outputs are those of the plain network.
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torch_dropblock import insert_dropblock_stages, remove_dropblock
from torch_dropblock.command import named_models
from torch_dropblock.layer import layouts
from torch_dropblock.layer.modules import DropBlockNd
from torch_dropblock.networks.plan import Plan

BEGIN, END = "<!-- families:begin -->", "<!-- families:end -->"

FAMILIES = Path(__file__).with_suffix(".txt")  # a small network of each family, and the size of its input
DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")


@dataclass
class Result:
    """The plan for a network, or why there is none; the seconds of CPU time that finding it took."""

    name: str
    input_size: tuple[int, ...]
    plan: Plan | None
    reason: str
    seconds: float
    verified: str = ""

    def cells(self) -> list[str]:
        size = "×".join(map(str, self.input_size[2:]))
        return [self.name, size, *self._where(), f"{self.seconds:.1f}", *([self.verified] if self.verified else [])]

    def _where(self) -> tuple[str, str]:
        if self.plan is None:
            return "-", f"none: {self.reason}"
        maps = Counter((row.map, _short(row.layout)) for row in self.plan.rows)
        kinds = Counter(row.type for row in self.plan.rows)
        at = ", ".join(f"{n} at {'×'.join(map(str, size))}{layout}" for (size, layout), n in maps.items())
        return ", ".join(f"`{kind}`" for kind in kinds), at + (f" (`stages=1`: {self.reason})" if self.reason else "")


def _short(layout: layouts.Layout) -> str:
    return {"channels_first": "", "channels_last": ", channels last"}.get(str(layout), ", tokens")


def families(only: str = "") -> list[tuple[str, tuple[int, ...]]]:
    """Return the names of the networks with this in their name, and the shapes of their inputs."""
    lines = [line.split() for line in FAMILIES.read_text(encoding="utf-8").splitlines()]
    return [(name, (1, 3, *map(int, size.split("x")))) for name, size in lines if only in name]


def find(name: str, size: tuple[int, ...], model: nn.Module) -> Result:
    """Plan the layers of a network: of its last two stages, or of the only one."""
    start, reason = time.thread_time(), ""
    plan = None
    for stages in (2, 1):
        try:
            plan = insert_dropblock_stages(model, size, dims=len(size) - 2, stages=stages, dry_run=True)
            break
        except ValueError as error:
            reason = reason or str(error)
            if "resolution" not in reason:
                break
    reason = reason and ("one resolution" if "one resolution" in reason else reason.split("; ")[0])
    return Result(name, size, plan, reason, time.thread_time() - start)


# --- a training step ---------------------------------------------------------------------------------------------


def verify(result: Result, model: nn.Module) -> str:
    """Return "yes" if a training step with the layers is right, or what is wrong."""
    if result.plan is None or any(word in result.name for word in DETECTORS):
        return "-"
    torch.manual_seed(0)
    plain = copy.deepcopy(model).eval()
    image = torch.randn(2, *result.input_size[1:])
    with torch.no_grad():
        expected = _first(plain(image))
    layers = insert_dropblock_stages(
        model, result.input_size, dims=len(result.input_size) - 2, stages=1 if result.reason else 2
    )
    shares = {name: Share(layer) for name, layer in layers.items() if isinstance(layer, DropBlockNd)}
    for name, share in shares.items():
        module = model.get_submodule(name)
        module.register_forward_hook(share.before_layer, prepend=True)
        module.register_forward_hook(share.after_layer)
    loss = _first(model.train()(image)).float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    problems = [f"{name} {problem}" for name, share in shares.items() for problem in share.problems()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not all(bool(grad.isfinite().all()) for grad in gradients):
        problems.append("gradients are not finite")
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        if not torch.equal(_first(model.eval()(image)), expected):
            problems.append("evaluation differs with layers")
        if remove_dropblock(model) != len(layers) or not torch.equal(_first(model(image)), expected):
            problems.append("removal is not exact")
    return "; ".join(problems) or "yes"


class Share:
    """The share that a layer drops in a forward pass, and its standard error over planes."""

    def __init__(self, layer: DropBlockNd) -> None:
        self.layer, self.before, self.prefix_dropped = layer, torch.empty(0), False
        self.measured: list[tuple[float, float]] = []

    def before_layer(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.before = output.detach().clone()

    def after_layer(self, module: nn.Module, args: Any, output: Tensor) -> None:
        layer = self.layer
        units = torch.Size(layouts.size_of(output.shape, layer.layout, layer.dims)).numel()
        alive = self.before != 0
        prefix, dropped = _planes((output == 0) & alive, layer.layout, units)
        self.prefix_dropped |= bool(prefix.any())
        alive = _planes(alive, layer.layout, units)[1].float().sum(1)
        shares = (dropped.float().sum(1) / alive)[alive > 0]
        self.measured.append((shares.mean().item(), (shares.std() / len(shares) ** 0.5).item()))

    def problems(self) -> Iterator[str]:
        if not self.measured:
            yield "did not run"
        if self.prefix_dropped:
            yield "drops tokens of the prefix"
        for mean, error in self.measured:
            if abs(mean - (1 - self.layer.keep_prob)) > 6 * error + 1e-3:
                yield f"drops {mean:.3f} ± {error:.3f}, not {1 - self.layer.keep_prob:.3f}"


def _planes(x: Tensor, layout: layouts.Layout, units: int) -> tuple[Tensor, Tensor]:
    """Return the prefix, and the maps of this many units as rows."""
    if layout == "channels_first":
        return x[:0], x.reshape(-1, units)
    rows = x.flatten(1, -2)
    return rows[:, :-units], rows[:, -units:].transpose(1, 2).reshape(-1, units)


def _first(output: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


# --- the table ---------------------------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    header = ["network", "input", "layers after", "how many, at which maps", "seconds"]
    if any(result.verified for result in results):
        header.append("a training step")
    lines = [header, ["---"] * len(header), *(result.cells() for result in results)]
    placed = sum(result.plan is not None for result in results)
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", "torchvision", "timm"))
    note = (
        f"{placed} of {len(results)} networks get layers. python {platform.python_version()}, {versions}; input of one "
        "image, block 7; seconds of CPU time, one thread, AMD EPYC."
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table between the markers in this file")
    parser.add_argument("--verify", action="store_true", help="take a training step of each network")
    parser.add_argument("--only", default="", metavar="TEXT", help="only networks with this in their name")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = []
    for name, size in families(options.only):
        results.append(_result(name, size, verify if options.verify else None))
        print(" | ".join(results[-1].cells()), flush=True)
        gc.collect()
    text = table(results)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _result(name: str, size: tuple[int, ...], check: Callable[[Result, nn.Module], str] | None) -> Result:
    torch.manual_seed(0)
    model = named_models.build(name)
    result = find(name, size, model)
    if check:
        try:
            result.verified = check(result, model)
        except Exception as error:  # noqa: BLE001 - the table names what failed, and goes on
            result.verified = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return result


if __name__ == "__main__":
    main()
