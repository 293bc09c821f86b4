"""One key, one mask: digests of the masks of 20 cases, for every backend on this machine, eager and compiled.

    python benchmarks/digests.py                                    # compare the digests
    python benchmarks/digests.py --write docs/reproducibility.md    # also write them between the markers in that file

Without a CUDA device the Triton backend runs in Triton's interpreter, in a separate process. Compiled cases
use `aot_eager`: operators draw the masks, and the code that Inductor would generate around them does not change them.
The exit code is 1 if any digest differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rates import between_markers, times
from torch_dropblock import drop_block1d, drop_block2d, drop_block3d, drop_block_mask, use_backend
from torch_dropblock.backends import native
from torch_dropblock.core.checks import Rate

DROP_BLOCK: dict[int, Callable[..., Tensor]] = {1: drop_block1d, 2: drop_block2d, 3: drop_block3d}
BACKENDS = ("reference", "sparse", "native", "triton")
NAME = "digests"


@dataclass(frozen=True)
class Case:
    """The arguments that determine a mask."""

    shape: tuple[int, ...]
    block: int | tuple[int, ...]
    dims: int = 2
    keep_prob: float = 0.9
    rate: Rate = "exact"
    share_channels: bool = False
    key: int = 42

    def mask(self, device: torch.device) -> Tensor:
        how: dict[str, Any] = {"keep_prob": self.keep_prob, "rate": self.rate, "share_channels": self.share_channels}
        return drop_block_mask(self.shape, self.block, dims=self.dims, key=self.key, device=device, **how)

    def compiled_mask(self, device: torch.device) -> Tensor:
        def drop(x: Tensor) -> Tensor:
            how: dict[str, Any] = {"rate": self.rate, "share_channels": self.share_channels, "key": self.key}
            return DROP_BLOCK[self.dims](x, self.block, keep_prob=self.keep_prob, **how)

        torch.compiler.reset()
        compiled: Callable[[Tensor], Tensor] = torch.compile(drop, backend="aot_eager", fullgraph=True)
        return compiled(torch.ones(self.shape, device=device)) != 0

    def cells(self) -> list[str]:
        block = str(self.block) if isinstance(self.block, int) else times(self.block)
        shared = "yes" if self.share_channels else "no"
        return [times(self.shape), f"{self.dims}-d", block, f"{self.keep_prob:g}", self.rate, shared, f"{self.key}"]


HEADER = ["shape", "maps", "block", "keep_prob", "rate", "share_channels", "key", "digest"]
CASES = (
    Case((4, 8, 28, 28), 7),
    Case((4, 8, 28, 28), 7, key=43),
    Case((4, 8, 28, 28), 7, key=-1),
    Case((4, 8, 28, 28), 7, key=2**63 - 1),
    Case((4, 8, 28, 28), 7, rate="paper"),
    Case((4, 8, 28, 28), 7, share_channels=True),
    Case((4, 8, 28, 28), 7, keep_prob=0.5),
    Case((4, 8, 28, 28), 7, keep_prob=0.99),
    Case((4, 8, 28, 28), 7, keep_prob=0.0),
    Case((4, 8, 28, 28), 7, keep_prob=1.0),
    Case((8, 28, 28), 7),
    Case((8, 16, 7, 7), 7, keep_prob=0.7),
    Case((2, 3, 14, 14), 1),
    Case((2, 3, 40, 10), (5, 2)),
    Case((1, 1, 200, 300), 7),
    Case((4, 8, 100), 9, dims=1),
    Case((2, 3, 5000), 200, dims=1, keep_prob=0.8),
    Case((4, 8, 100), 9, dims=1, share_channels=True),
    Case((2, 4, 6, 8, 7), 3, dims=3),
    Case((2, 4, 9, 10, 11), (9, 2, 10), dims=3, keep_prob=0.6, rate="paper"),
)


def digest(mask: Tensor) -> str:
    """Return the first 16 hexadecimal digits of SHA-256 of a mask, one byte per unit."""
    return sha256(bytes(mask.flatten().to(torch.uint8).tolist())).hexdigest()[:16]


def digests_of(backend: str) -> dict[str, list[str]]:
    """Compute the digests of all cases in this process, eager and compiled."""
    device = torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
    with use_backend(backend):
        return {
            f"{backend}, eager": [digest(case.mask(device)) for case in CASES],
            f"{backend}, compiled": [digest(case.compiled_mask(device)) for case in CASES],
        }


def interpreted_digests() -> dict[str, list[str]]:
    """Compute the digests of Triton in a process that uses its interpreter instead of a GPU."""
    command = [sys.executable, "-W", "ignore", __file__, "--json", "--backend", "triton"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    digests: dict[str, list[str]] = json.loads(done.stdout)
    return digests


def measured(backend: str) -> dict[str, list[str]]:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if backend == "triton" and not torch.cuda.is_available() and not interpreted:
        return {f"{way}, interpreted": values for way, values in interpreted_digests().items()}
    return digests_of(backend)


def available() -> list[str]:
    """Return the backends available on this machine."""
    missing = {"native": native.LIBRARY is None, "triton": find_spec("triton") is None}
    return [backend for backend in BACKENDS if not missing.get(backend, False)]


def table(digests: Sequence[str]) -> str:
    rows = [HEADER, ["---"] * len(HEADER)]
    rows += [[*case.cells(), f"`{value}`"] for case, value in zip(CASES, digests, strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def differences(ways: dict[str, list[str]]) -> list[str]:
    """Return a line for each digest that differs from that of the first way."""
    first, *others = ways
    return [
        f"{way}: {' '.join(case.cells())}: {mine}, and {expected} for {first}"
        for way in others
        for case, mine, expected in zip(CASES, ways[way], ways[first], strict=True)
        if mine != expected
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Digests of the masks of 20 cases, for every backend.")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the digests of each backend as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"replace what is between the markers {NAME}")
    options = parser.parse_args(arguments)
    if options.write is not None:
        try:  # before anything is measured
            between_markers(options.write.read_text(encoding="utf-8"), "", NAME)
        except (OSError, ValueError) as error:
            parser.error(f"--write {options.write}: {error}")

    ways = {way: values for name in options.backend or available() for way, values in measured(name).items()}
    if options.json:
        print(json.dumps(ways))
        return
    content = table(next(iter(ways.values())))
    print(content, end="\n\n")
    different = differences(ways)
    print("\n".join(different) or f"all equal: {'; '.join(ways)}")
    if different:
        raise SystemExit(1)
    if options.write is not None:
        text = options.write.read_text(encoding="utf-8")
        options.write.write_text(between_markers(text, content, NAME), encoding="utf-8")


if __name__ == "__main__":
    main()
