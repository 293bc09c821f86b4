"""Cost of the layer beside `x * c` and its peers, forward and backward together.

The contenders of a case take turns, and each round starts with the next one, so that a slower machine slows all of
them. A ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import importlib
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..backends import native
from ..backends.sparse import CHANNELS_LAST
from ..layer.modules import DropBlock1d, DropBlock2d, DropBlock3d

OURS, PRODUCT = "torch-dropblock", "x * c"
# our layer without its native library
PYTHON = "pure Python"
SHAPES = ((32, 256, 28, 28), (32, 64, 56, 56), (32, 1024, 14, 14), (64, 512, 7, 7), (8, 64, 112, 112))
# 256 MB or more at two bytes per element, several times the cache of a GPU
GPU_SHAPES = ((640, 256, 28, 28), (640, 1024, 14, 14), (1280, 2048, 7, 7), (128, 256, 64, 64))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LAYOUTS = ("contiguous", "channels_last")
MODES = ("eager", "compiled")
SECONDS_A_TURN = 0.005
CYCLES_ASLEEP = 20_000_000  # GPU cycles: about 10 ms
# ratios are unreliable if the baseline's quartiles differ by more than this share of its median
UNSTABLE = 0.2


@dataclass(frozen=True)
class Case:
    """A case to measure: a tensor, the layer's settings, mode and device."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "contiguous"
    mode: str = "eager"
    block_size: int = 7
    keep_prob: float = 0.9
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.layout == "channels_last" and len(self.shape) < 4:
            raise ValueError(f"channels_last needs a shape of 4 or 5 numbers, got {self.shape}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"device {self.device!r} cannot be used here: {reason}") from None

    @property
    def kind(self) -> str:
        """Mode, dtype and layout, shared by cases of different shapes."""
        return f"{self.mode}, {self.dtype}, {self.layout}"

    def __str__(self) -> str:
        return f"{'×'.join(map(str, self.shape))}, {self.kind}"

    def tensor(self) -> Tensor:
        x = torch.randn(self.shape, device=self.device).to(DTYPES[self.dtype])
        return x.to(memory_format=CHANNELS_LAST[x.dim()]) if self.layout == "channels_last" else x


@dataclass(frozen=True)
class Row:
    """Cost of one contender in one case.

    The saved bytes are those kept for the backward pass, without the input. On a GPU the time is the device's own.
    `gigabytes_per_second` counts only the memory that has to move: input, output and both gradients, once each.
    """

    case: Case
    contender: str
    median_us: float
    spread: float
    ratio: float
    saved_bytes_per_element: float
    rounds: int
    gigabytes_per_second: float
    saved_bytes: int


def contenders(case: Case) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return every contender available for this case by name, the product first."""
    drop_prob, dims = 1 - case.keep_prob, len(case.shape) - 2
    layer = {1: DropBlock1d, 2: DropBlock2d, 3: DropBlock3d}[dims]
    found: dict[str, Callable[[Tensor], Tensor]] = {
        PRODUCT: lambda x: x * 1.1,
        OURS: layer(case.block_size, keep_prob=case.keep_prob),
    }
    if native.LIBRARY is not None and case.mode == "eager" and torch.device(case.device).type == "cpu":
        found[PYTHON] = layer(case.block_size, keep_prob=case.keep_prob)
    found["nn.Dropout"] = nn.Dropout(drop_prob)
    if dims == 2 and case.block_size % 2 and (theirs := peer("torchvision.ops", "DropBlock2d")):
        found["torchvision"] = theirs(drop_prob, case.block_size)  # it refuses even blocks
    if dims == 2 and (theirs := peer("timm.layers", "DropBlock2d")):
        # its default of one mask for all channels is less work than the others have
        found["timm"] = theirs(drop_prob, case.block_size, couple_channels=False)
    return found


def peer(module: str, name: str) -> Any:
    """Import a name from a peer; None if the peer is not installed or was built for another PyTorch."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, RuntimeError, OSError):
        return None


def measure(case: Case, rounds: int, names: Collection[str] | None = None) -> list[Row]:
    """Measure a case: one row per contender, or per contender in `names`."""
    x, gradient = case.tensor().requires_grad_(), case.tensor()
    functions = {name: function for name, function in contenders(case).items() if names is None or name in names}
    if case.mode == "compiled":
        torch.compiler.reset()
        functions = {name: torch.compile(function) for name, function in functions.items()}
    saved = {name: saved_bytes(function, x) for name, function in functions.items()}
    moved = 4 * x.numel() * x.itemsize
    steps = {name: _step(function, x, gradient) for name, function in functions.items()}
    if PYTHON in steps:
        steps[PYTHON] = native.left_out()(steps[PYTHON])
    times = take_turns(steps, rounds, case.device)
    ratios = ratios_to(PRODUCT, times)
    return [
        Row(
            case,
            name,
            median_us=1e6 * statistics.median(t),
            spread=spread(t),
            ratio=ratios[name],
            saved_bytes_per_element=saved[name] / x.numel(),
            rounds=rounds,
            gigabytes_per_second=moved / statistics.median(t) / 1e9,
            saved_bytes=saved[name],
        )
        for name, t in times.items()
    ]


def _step(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Callable[[], None]:
    def step() -> None:
        function(x).backward(gradient)  # type: ignore[no-untyped-call]
        x.grad = None

    return step


def take_turns(steps: dict[str, Callable[[], None]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return the seconds of each step in each round; each round starts with the next step."""
    for step in steps.values():
        _seconds(step, 2, device)
    repeats = {name: max(1, round(SECONDS_A_TURN / _seconds(step, 2, device))) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            steps[name]()  # warm-up: the previous contender has filled the caches
            times[name].append(_seconds(steps[name], repeats[name], device))
    return times


def _seconds(step: Callable[[], None], repeats: int, device: str) -> float:
    """Return the mean seconds of a step; on a GPU, from the start of its first kernel to the end of its last.

    The GPU sleeps first, so that the host can launch all kernels ahead of it. If the GPU wakes before the last launch,
    the measurement is repeated with a longer sleep.
    """
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            for cycles in (CYCLES_ASLEEP << i for i in range(4)):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
                begin.record()
                for _ in range(repeats):
                    step()
                asleep = not begin.query()  # type: ignore[no-untyped-call]
                end.record()
                end.synchronize()
                if asleep:
                    break
            return float(begin.elapsed_time(end)) / 1000 / repeats

    def wait() -> None:
        if torch.device(device).type != "cpu":
            torch.accelerator.synchronize(device)

    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    wait()
    return (time.perf_counter() - start) / repeats


def ratios_to(baseline: str, times: dict[str, list[float]]) -> dict[str, float]:
    """Return the median over rounds of the ratio to the baseline within a round."""
    return {
        name: statistics.median(mine / theirs for mine, theirs in zip(t, times[baseline], strict=True))
        for name, t in times.items()
    }


def spread(times: Sequence[float]) -> float:
    """Return the interquartile range divided by the median."""
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / middle


def saved_bytes(function: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return the bytes kept for the backward pass, without the input."""
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != x.untyped_storage().data_ptr():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        function(x)
    return sum(kept.values())


def chosen_cases(
    shapes: Sequence[tuple[int, ...]] = (),
    dtypes: Sequence[str] = (),
    layouts: Sequence[str] = (),
    modes: Sequence[str] = (),
    **settings: Any,
) -> list[Case]:
    """Return every combination of the choices; without any, the cases of `torch-dropblock bench --help`."""
    on_gpu = str(settings.get("device", "cpu")).startswith("cuda")
    large = GPU_SHAPES if on_gpu else SHAPES
    if shapes or dtypes or layouts or modes:
        combinations = itertools.product(
            modes or MODES[:1], dtypes or ["float32"], layouts or LAYOUTS[:1], shapes or large
        )
        return [Case(shape, dtype, layout, mode, **settings) for mode, dtype, layout, shape in combinations]
    last = "bfloat16" if on_gpu else "float32"  # the usual dtype of training on a GPU
    kinds = (("float32", "contiguous"), ("bfloat16", "contiguous"), (last, "channels_last"))
    eager = [Case(shape, *kind, "eager", **settings) for kind in kinds for shape in large]
    return eager + [Case(large[0], *kind, "compiled", **settings) for kind in kinds]


def machine(device: str) -> dict[str, Any]:
    """Describe the machine and the versions of the measurement."""
    others = ["torchvision", "timm", *(["triton"] if torch.device(device).type == "cuda" else [])]
    peers = {name: version.partition("+")[0] for name in others if (version := peer(name, "__version__"))}
    versions = {"torch-dropblock": __version__, "torch": str(torch.__version__), **peers}
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor()
    return {
        "processor": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
        "native": "no" if native.LIBRARY is None else "yes",
    }


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Convert rows for `json.dump`, each with the machine that it was measured on."""
    devices = {row.case.device: machine(row.case.device) for row in rows}
    flat = ({**asdict(row), **asdict(row.case), **devices[row.case.device]} for row in rows)
    return [{name: value for name, value in row.items() if name != "case"} for row in flat]
