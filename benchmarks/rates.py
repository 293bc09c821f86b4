"""Measured drop rates of DropBlock layers (10 % requested).

    python benchmarks/rates.py                        # print the table
    python benchmarks/rates.py --write docs/rates.md  # also write it between the markers in that file

Each implementation gets feature maps of ones, so that a zero in its output is a dropped unit. The maps have one
channel, because timm and dropblock draw one mask for all channels of a sample. Each plane is then an independent
draw, and the spread from plane to plane gives the standard error.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_dropblock import DropBlock2d, expected_keep_rate, seed_probability
from torch_dropblock.bench.measure import processor

KEEP_PROB = 0.9
DROP_PROB = 0.1
PLANES_AT_ONCE = 10_000
FLOAT16_SHAPE, FLOAT16_BLOCK = (64, 256, 28, 28), 7
BEGIN, END = "<!-- rates:begin -->", "<!-- rates:end -->"

Drop = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Case:
    """A map and a block."""

    size: tuple[int, int]
    block: int

    def __str__(self) -> str:
        return f"{times(self.size)}, {self.block}"


CASES = (
    Case((28, 28), 7),
    Case((14, 14), 7),
    Case((7, 7), 7),
    Case((40, 10), 7),
    Case((4, 4), 7),
    Case((28, 28), 6),
)


# --- implementations, each with a drop rate of DROP_PROB ---------------------------------------------------------


def ours(x: Tensor, block_size: int) -> Tensor:
    output: Tensor = DropBlock2d(block_size, keep_prob=KEEP_PROB)(x)
    return output


def ours_paper(x: Tensor, block_size: int) -> Tensor:
    output: Tensor = DropBlock2d(block_size, keep_prob=KEEP_PROB, rate="paper")(x)
    return output


def theory_paper(case: Case) -> float:
    """Return the expected share dropped with equation 1 of the paper."""
    gamma = seed_probability(case.size, case.block, KEEP_PROB, "paper")
    return 1 - expected_keep_rate(case.size, case.block, gamma)


def torchvision(x: Tensor, block_size: int) -> Tensor:
    """Call torchvision's layer; its `p` is the share dropped."""
    from torchvision.ops import DropBlock2d

    output: Tensor = DropBlock2d(p=DROP_PROB, block_size=block_size)(x)
    return output


def timm(x: Tensor, block_size: int) -> Tensor:
    from timm.layers.drop import drop_block_2d

    output: Tensor = drop_block_2d(x, drop_prob=DROP_PROB, block_size=block_size)
    return output


def dropblock(x: Tensor, block_size: int) -> Tensor:
    from dropblock import DropBlock2D  # type: ignore[import-untyped]

    output: Tensor = DropBlock2D(drop_prob=DROP_PROB, block_size=block_size)(x)
    return output


def article(x: Tensor, block_size: int) -> Tensor:
    """Call the layer of "A better Dropout! Implementing DropBlock in PyTorch".

    γ is equation 1 for a square map as wide as this one, and a seed, the centre of a block, may lie anywhere.
    """
    width = x.shape[-1]
    gamma = (1 - KEEP_PROB) / block_size**2 * width**2 / (width - block_size + 1) ** 2
    seeds = torch.full_like(x, gamma).bernoulli()
    kept = 1 - F.max_pool2d(seeds, block_size, stride=1, padding=block_size // 2)
    return kept * x * (kept.numel() / kept.sum())


OURS: dict[str, Drop] = {"torch-dropblock": ours, 'torch-dropblock, `rate="paper"`': ours_paper}
# by the name of the distribution and the module
PEERS: dict[str, Drop] = {"torchvision": torchvision, "timm": timm, "dropblock": dropblock}
ARTICLE: dict[str, Drop] = {"the article's code": article}


def peer_versions() -> dict[str, str]:
    """Return the version of each installed peer."""
    return {peer: metadata.version(peer) for peer in PEERS if find_spec(peer)}


# --- measuring ---------------------------------------------------------------------------------------------------


def share_dropped(drop: Drop, case: Case, planes: int) -> tuple[float, float]:
    """Measure the share of units dropped and its standard error, over independent planes."""
    shares = []
    for first in range(0, planes, PLANES_AT_ONCE):
        x = torch.ones(min(PLANES_AT_ONCE, planes - first), 1, *case.size)
        y = drop(x, case.block)
        if y.isnan().any():
            return math.nan, 0.0
        shares.append((y == 0).count_nonzero(dim=(1, 2, 3)).double() / math.prod(case.size))
    every = torch.cat(shares)
    return every.mean().item(), every.std().item() / math.sqrt(planes)


def float16_mean(drop: Drop) -> str:
    """Return the mean of the output for ones, which should be 1, and its dtype if it differs from the input's."""
    y = drop(torch.ones(FLOAT16_SHAPE, dtype=torch.float16), FLOAT16_BLOCK)
    changed = "" if y.dtype == torch.float16 else f", in {str(y.dtype).removeprefix('torch.')}"
    return number("{:.3f}", y.double().mean().item()) + changed


def outcome(measure: Callable[[Drop], str], drop: Drop, seed: int) -> str:
    """Return the content of a cell: the measure, or the error that the implementation raises.

    Every cell starts from the same random seed, so that none depends on the installed peers.
    """
    torch.manual_seed(seed)
    try:
        return measure(drop)
    except (TypeError, ValueError) as error:
        return f"refuses: {type(error).__name__}"
    except Exception as error:  # noqa: BLE001 - any error is a result
        return f"fails: {type(error).__name__}"


def rates(planes: int, seed: int) -> str:
    """Return the table, and below it how it was made."""
    versions = peer_versions()
    others = {peer: PEERS[peer] for peer in versions} | ARTICLE
    errors = []

    def share(case: Case, drop: Drop) -> str:
        mean, error = share_dropped(drop, case, planes)
        errors.append(error)
        return number("{:.1%}", mean)

    def row(label: str, theory: str, measure: Callable[[Drop], str]) -> list[str]:
        own, other = ([outcome(measure, drop, seed) for drop in group.values()] for group in (OURS, others))
        return [label, *own, theory, *other]

    header = ["map, block", *OURS, "its theory", *others]
    rows = [header, ["---"] * len(header)]
    rows += [row(str(case), number("{:.1%}", theory_paper(case)), partial(share, case)) for case in CASES]
    label = f"{times(FLOAT16_SHAPE)} float16, {FLOAT16_BLOCK}: mean for ones"
    rows.append(row(label, "1", float16_mean))

    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"{table}\n\n{made_with(versions, planes, seed, max(errors))}"


def made_with(versions: dict[str, str], planes: int, seed: int, error: float) -> str:
    used = {"python": platform.python_version(), "torch": torch.__version__, **versions}
    lines = [
        ", ".join(f"{name} {version}" for name, version in used.items())
        + f"; {processor()}; seed {seed}; {planes:,} planes for each share, "
        f"standard error at most {100 * error:.2f} percentage points."
    ]
    if missing := [peer for peer in PEERS if peer not in versions]:
        lines.append(f"Not installed, so left out: {', '.join(missing)}.")
    return "\n".join(lines)


def number(form: str, value: float) -> str:
    return "NaN" if math.isnan(value) else form.format(value).replace("%", " %")


def times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


# --- command -----------------------------------------------------------------------------------------------------


def between_markers(text: str, content: str, name: str = "rates") -> str:
    """Replace the part of `text` between the markers of this name by `content`."""
    first, last = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"the text must have a line {first} and after it a line {last}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure drop rates of DropBlock layers (10 % requested).")
    parser.add_argument("--planes", type=int, default=200_000, help="planes for each share, 2 or more (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of every cell (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"replace what is between {BEGIN} and {END}")
    options = parser.parse_args(arguments)
    if options.planes < 2:
        parser.error(f"--planes must be 2 or more, got {options.planes}")
    if options.write is not None:
        try:  # before anything is measured
            between_markers(options.write.read_text(encoding="utf-8"), "")
        except (OSError, ValueError) as error:
            parser.error(f"--write {options.write}: {error}")

    content = rates(options.planes, options.seed)
    print(content)
    if options.write is not None:
        text = options.write.read_text(encoding="utf-8")
        options.write.write_text(between_markers(text, content), encoding="utf-8")


if __name__ == "__main__":
    main()
