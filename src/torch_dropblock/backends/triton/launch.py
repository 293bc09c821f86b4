"""Launch the Triton kernels: draw a mask of one bit per unit, then read the input once and write the output once.

    keep_prob ── gamma.solve ──> table ─┐   (if only the GPU holds keep_prob)
    key ────────────────────────────────┼─ draw.draw ──> mask, scale ── apply.apply_* ──> output
                                        └─ draw_channels.draw_channels ──> mask, scale     (for compiled code)

docs/kernel.md has the details. If TRITON_INTERPRET=1 is set before Triton is imported, the same code runs on CPU
tensors, in Triton's interpreter.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from ...core.blocks import Blocks
from ...core.geometry import Size
from ...core.seeds import MOST_EXPECTED, MOST_LAM, TABLE
from .. import packed, sparse
from . import apply as triton_apply
from . import draw as triton_draw
from . import draw_channels as triton_draw_channels
from . import gamma as triton_gamma
from . import reserve
from .plan import at_most, channels_plan_of, parts, plan_of
from .plan import why_not_of as why_not_of
from .prepared import Prepared

DTYPES = {
    torch.float16: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@dataclass(frozen=True, eq=False)  # compared by identity, which is quick
class Launch:
    """Amount of work per program; it affects only the running time."""

    streams: int = 4
    draws: int = 16
    words: int = 512
    words_of_channels: int = 4096
    eights: int = 128
    channels: int = 128
    tasks: int = 64


INTERPRETED: bool = triton.knobs.runtime.interpret if hasattr(triton, "knobs") else False
# in the interpreter, a program with thousands of lanes takes no longer than one with a single lane
LAUNCH = Launch(64, 256, 65536, 4096, 65536, 1024, 1024) if INTERPRETED else Launch()


@dataclass(frozen=True)
class Mask:
    """A drawn mask: unit i, counted plane by plane and row by row, is dropped if bit i of `words` is set."""

    words: Tensor
    # number of units over number kept: float64, no dimensions
    scale: Tensor
    blocks: Blocks

    def dense(self) -> Tensor:
        """Return the mask as bools, True where dropped, of shape `(*own_lead, *size)`."""
        return _unpacked(self.words, self.blocks.units).view(*self.blocks.own_lead, *self.blocks.size)


def _unpacked(words: Tensor, units: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    return (words.view(torch.uint8).unsqueeze(1) >> shifts & 1).view(-1)[:units].to(torch.bool)


def solved_table(keep_prob: Tensor, size: Size, block: Size, rate: str, length: int) -> Tensor:
    """Make the table of `seeds.table_of` for a `keep_prob` that only the device holds."""
    table = torch.empty(TABLE, dtype=torch.float64, device=keep_prob.device)
    _solve(size, block, rate, length)(keep_prob.device, keep_prob, table, kind=keep_prob.dtype)
    return table


@lru_cache(maxsize=1024)
def _solve(size: Size, block: Size, rate: str, length: int) -> Prepared:
    pad = (1,) * (3 - len(size))
    # a lane for each combination of covering numbers, see `coverage`
    distinct = math.prod(min(b, s - b + 1) for s, b in zip(size, block, strict=True))
    lanes = min(max(triton.next_power_of_2(distinct), 32), 1024)
    constants = {"PAPER": rate == "paper", "LANES": lanes, "TABLE": TABLE}
    return Prepared(
        triton_gamma.solve,
        1,
        (length, *pad, *size, *pad, *block),
        constants | {"MOST_EXPECTED": MOST_EXPECTED, "MOST_LAM": MOST_LAM},
        num_warps=max(1, lanes // 256),
        enable_fp_fusion=False,  # the table must equal the host's bit for bit
    )


def draw(
    key: Tensor,
    blocks: Blocks,
    table: Tensor,
    *,
    scale: Tensor | None = None,
    copy: Tensor | None = None,
    launch: Launch = LAUNCH,
) -> Mask:
    """Draw the mask of a key; nothing is read back.

    Args:
        key: the key.
        blocks: where blocks may fall.
        table: the table of `seeds.table_of`, on the device of the key.
        scale: the scale, if it is known; otherwise it is counted.
        copy: memory for a copy of the table; only if the scale is counted.
        launch: amount of work per program.
    """
    prepared, length, scratch_length = _draw(blocks, launch, scale is None, copy is not None)
    words = torch.empty(length, dtype=torch.int64, device=key.device)
    scratch = torch.empty(scratch_length, dtype=torch.int64, device=key.device)
    counted, scale = (scratch, scale) if scale is not None else _counted_scale(key.device)
    prepared(key.device, words, scratch, counted, scale, key, table, table if copy is None else copy)
    return Mask(words, scale, blocks)


def _draw(blocks: Blocks, launch: Launch, count: bool, copy: bool) -> tuple[Prepared, int, int]:
    """Return the kernel that draws, with the lengths of the mask and of its scratch memory in words."""
    kind = launch, count, copy
    if kind not in blocks.cache:
        plan = plan_of(blocks, launch.words)
        constants: dict[str, Any] = {"COUNT": count, "COPY": copy, "ONE_CHUNK": plan.one_chunk}
        constants["UNIT"] = tl.int64 if plan.wide else tl.int32
        constants |= {"STREAMS": launch.streams, "DRAWS": launch.draws, "CHUNK": plan.chunk, "TABLE": TABLE}
        warps = max(launch.streams * launch.draws // 32, 1)
        numbers = tuple(plan.parameters.values())
        prepared = Prepared(triton_draw.draw, plan.programs, numbers, constants, num_warps=warps)
        blocks.cache[kind] = prepared, plan.length, plan.scratch
    kernel: tuple[Prepared, int, int] = blocks.cache[kind]
    return kernel


def draw_channels(
    key: Tensor,
    blocks: Blocks,
    table: Tensor,
    *,
    scale: Tensor | None = None,
    copy: Tensor | None = None,
    launch: Launch = LAUNCH,
) -> tuple[Tensor, Tensor]:
    """Draw like `draw`, with 32 channels to a word: int32 of shape (N, *size, ⌈C / 32⌉), and the scale."""
    prepared = _draw_channels(blocks, launch, scale is None, copy is not None)
    if prepared is None:
        mask = draw(key, blocks, table, scale=scale, copy=copy, launch=launch)
        return channels_inside(mask), mask.scale
    words = torch.empty(packed.shape(blocks.own_lead, blocks.size, "channels"), dtype=torch.int32, device=key.device)
    counted, scale = (words, scale) if scale is not None else _counted_scale(key.device)
    prepared(key.device, words, counted, scale, key, table, table if copy is None else copy)
    return words, scale


def _draw_channels(blocks: Blocks, launch: Launch, count: bool, copy: bool) -> Prepared | None:
    """Return the kernel that draws 32 channels to a word, None if the maps are too large for one program."""
    kind = "channels", launch, count, copy
    if kind not in blocks.cache:
        plan = channels_plan_of(blocks, launch.words_of_channels)
        blocks.cache[kind] = None
        if plan is not None:
            warps = min(max(plan.chunk // 512, 2), 8)
            constants: dict[str, Any] = {"COUNT": count, "COPY": copy, "STREAMS": launch.streams * warps // 2}
            constants |= {"DRAWS": launch.draws, "WIDTH": plan.width, "CHUNK": plan.chunk, "TABLE": TABLE}
            numbers = tuple(plan.parameters.values())
            kernel = triton_draw_channels.draw_channels
            blocks.cache[kind] = Prepared(kernel, plan.programs, numbers, constants, num_warps=warps)
    prepared: Prepared | None = blocks.cache[kind]
    return prepared


def _counted_scale(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a counter, and memory for the scale that a kernel makes of the count."""
    return _counter(device), torch.empty((), dtype=torch.float64, device=device)


def _counter(device: torch.device) -> Tensor:
    """Return a counter that is 0; the kernel sets it to 0 again."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int64, device=device)  # the graph may run at any time
    return next(reserve.of(device).counters)


def apply(input: Tensor, output: Tensor, mask: Mask, *, launch: Launch = LAUNCH) -> None:
    """Write the input times the scale, and 0 where dropped, into `output`, which may be the input."""
    cache, kind = mask.blocks.cache, (launch, input.dtype, input.stride(), output.stride())
    if kind not in cache:
        cache[kind] = _flat(input, output, mask.blocks, launch) or _tiles(input, output, mask.blocks, launch)
    prepared: Prepared | None = cache[kind]
    if prepared is None:
        # strides that no tile fits, or a mask shared across the dimension that `torch.vmap` maps over
        output.copy_(sparse.masked(input, mask.dense(), mask.scale))
        return
    aligned = input.data_ptr() % 16, output.data_ptr() % 16
    prepared(input.device, input, output, mask.words, mask.scale, kind=aligned)


def _flat(input: Tensor, output: Tensor, blocks: Blocks, launch: Launch) -> Prepared | None:
    """Return the kernel for tensors whose elements lie in the order of the mask's bits."""
    if blocks.shared or not input.is_contiguous() or not output.is_contiguous():
        return None
    count = input.numel()
    eights = at_most(launch.eights, parts(count, 8))
    constants = {"OP": DTYPES[input.dtype], "EIGHTS": eights}
    return Prepared(triton_apply.apply_flat, parts(count, 8 * eights), (count,), constants)


def _tiles(input: Tensor, output: Tensor, blocks: Blocks, launch: Launch) -> Prepared | None:
    """Return the kernel for tensors whose samples, channels and units have one stride each."""
    lead = blocks.lead if len(blocks.lead) > 1 else (1, *blocks.lead)
    input_place, output_place = (_strides(t.shape, t.stride(), len(blocks.lead)) for t in (input, output))
    if input_place is None or output_place is None or blocks.shared not in ((), (len(blocks.lead) - 1,)):
        return None
    samples, channels, size = math.prod(lead[:-1]), lead[-1], math.prod(blocks.size)
    at_once = min(launch.channels, triton.next_power_of_2(channels))
    rows, columns = parts(size, 32), parts(channels, at_once)
    sample_bits, channel_bits = (size, 0) if blocks.shared else (size * channels, size)
    words = 2 * parts(blocks.units, 64)
    return Prepared(
        triton_apply.apply_tiles,
        samples * rows * columns,
        (words, rows * columns, columns, size, channels, sample_bits, channel_bits, *input_place, *output_place),
        {"OP": DTYPES[input.dtype], "CHANNELS": at_once},
        num_warps=max(1, at_once // 64),
    )


def channels_inside(mask: Mask) -> Tensor:
    """Return the mask with 32 channels to a word: int32 of shape (N, *size, ⌈C / 32⌉)."""
    blocks = mask.blocks
    samples, channels, columns = math.prod(blocks.lead[:-1]), blocks.lead[-1], parts(blocks.lead[-1], 32)
    target = torch.empty((samples, *blocks.size, columns), dtype=torch.int32, device=mask.words.device)
    if "channels_inside" not in blocks.cache:
        size, words = math.prod(blocks.size), 2 * parts(blocks.units, 64)
        rows = parts(size, 32)
        down, across = (min(int(triton.next_power_of_2(n)), most) for n, most in ((rows, 2), (columns, 8)))
        groups = samples * parts(rows, down) * parts(columns, across)
        blocks.cache["channels_inside"] = Prepared(
            triton_apply.channels_inside,
            parts(groups * down * across, LAUNCH.tasks),
            (words, groups, size, channels, rows, columns),
            {"ROWS": down, "COLUMNS": across, "TASKS": LAUNCH.tasks},
            num_warps=max(1, LAUNCH.tasks // 32),
        )
    blocks.cache["channels_inside"](target.device, mask.words, target)
    return target


@lru_cache
def why_not_on(device: torch.device) -> str | None:
    """Return why this backend does not serve tensors on this device, None if it does."""
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"it runs on CUDA devices, and the input is on {device}"
    if device.type == "cuda" and _is_old(device):
        return f"Triton needs a GPU of compute capability 8.0 or more, and {device} is older"
    return None


def _is_old(device: torch.device) -> bool:
    if torch.version.hip is not None or not torch.cuda.is_available():  # without a GPU, CUDA tensors are fake ones
        return False
    return torch.cuda.get_device_capability(device) < (8, 0)


@lru_cache(maxsize=1024)
def _strides(shape: Size, stride: Size, lead: int) -> tuple[int, int, int] | None:
    """Return the strides of samples, channels and units, or None if one of them has no single stride."""
    sample = _one_stride(shape[: lead - 1], stride[: lead - 1])
    unit = _one_stride(shape[lead:], stride[lead:])
    return None if sample is None or unit is None else (sample, stride[lead - 1], unit)


def _one_stride(shape: Size, strides: Size) -> int | None:
    axes = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n > 1]
    if not axes:
        return 0
    if any(outer != n * inner for (_, outer), (n, inner) in itertools.pairwise(axes)):
        return None
    return axes[-1][1]
