"""The layer on a GPU: a mask of one bit per unit is drawn, then the input is read once and written once.

`triton_kernels.py` is what runs there, docs/kernel.md says how. With TRITON_INTERPRET=1 set before Triton is imported
the same code runs on CPU tensors, in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from . import sparse
from . import triton_kernels as kernels
from .drawing import Blocks
from .geometry import Size

# The positions of one plane and of one stream are counted in 32 bits.
MOST_UNITS_OF_A_PLANE = 1 << 30
# int64 numbers in a line of a GPU's cache
A_LINE = 16
# Of so many bytes the first have left every cache before the last are there: they are to leave room for the mask.
NO_LONGER_CACHED = 1 << 27
DTYPES = {
    torch.float16: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@dataclass(frozen=True)
class Launch:
    """How much one program does; nothing but time depends on it."""

    lanes: int = 32
    words: int = 1024
    eights: int = 512
    channels: int = 128


INTERPRETED: bool = triton.knobs.runtime.interpret if hasattr(triton, "knobs") else False
# the interpreter takes as long for a program of one lane as for one of thousands
LAUNCH = Launch(8192, 65536, 65536, 1024) if INTERPRETED else Launch()


@dataclass(frozen=True)
class Mask:
    """What was drawn: the unit of number i, plane by plane and row by row, is dropped if bit i of `words` is set."""

    words: Tensor
    # units over units kept: float64, of no dimensions
    scale: Tensor
    blocks: Blocks
    corners: Tensor | None = None

    def dense(self) -> Tensor:
        """True where dropped, of shape `(*own_lead, *size)`."""
        return _unpacked(self.words, self.blocks.units).view(*self.blocks.own_lead, *self.blocks.size)

    def seeds(self) -> Tensor:
        """The corners that were drawn, numbered as `drawing.draw_seeds` numbers seeds."""
        if self.corners is None:
            raise ValueError("corners must be noted when the mask is drawn")
        at = _unpacked(self.corners, self.blocks.units).view(-1, *self.blocks.size)
        inside = at[(slice(None), *(slice(v) for v in self.blocks.valid))]
        if int(inside.sum()) != int(at.sum()):
            raise RuntimeError("a corner lies outside the valid seed region")
        return inside.flatten().nonzero().flatten()


def _unpacked(words: Tensor, units: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    return (words.view(torch.uint8).unsqueeze(1) >> shifts & 1).view(-1)[:units].to(torch.bool)


def stream_length(blocks: Blocks) -> int:
    """How many seed positions make a stream: where a tenth of the units is dropped, one or two seeds are in each.

    Where there are many streams they are up to four times as long: lanes that walk side by side wait for the one of
    the most seeds, which is then less above the mean. A function of the shape and the block alone, as the mask is.
    """
    seeds_wanted = math.prod(blocks.size) / (math.prod(blocks.block) * math.prod(blocks.valid))  # to drop them all
    length = min(max(round(16 / seeds_wanted), 16), 1 << 14)
    return length * min(max(blocks.positions // length >> 15, 1), 4)


@lru_cache(maxsize=1024)
def reciprocal(divisor: int) -> int:
    """What a number below 2^31 is multiplied by, and shifted right by, to be divided: 32 bits each, the shift above.

    Source: Granlund, Montgomery, "Division by invariant integers using multiplication", PLDI 1994.
    """
    shift = 31 + (divisor - 1).bit_length()
    return _parts(1 << shift, divisor) | shift << 32


@lru_cache(maxsize=1024)
def growth(size: Size, block: Size) -> tuple[tuple[int, int, int, int], ...]:
    """(stride, step, last, shifts) of each `grow` that turns rows of units into blocks; at least one, to count.

    A block's extent along an axis is so many shifts; where those are many, they are made of two growths.
    """
    steps: list[tuple[int, int, int, int]] = []
    for axis, extent in enumerate(block[:-1]):
        stride, few = math.prod(size[axis + 1 :]), extent
        if extent > 8:
            few = math.isqrt(extent - 1) + 1
            steps.append((stride, few, extent - few, -(-extent // few)))
        if extent > 1:
            steps.append((stride, 1, few - 1, few))
    return tuple(steps) or ((0, 0, 0, 1),)


def mean_gap(keep_prob: Tensor, size: Size, block: Size, rate: str) -> Tensor:
    """-1 / log(1 - γ) for a `keep_prob` that only the device knows: float64, of one element."""
    gap = torch.empty(1, dtype=torch.float64, device=keep_prob.device)
    pad = (1,) * (3 - len(size))
    # for the distinct numbers of blocks that cover a unit, see `geometry`
    distinct = math.prod(min(b, s - b + 1) for s, b in zip(size, block, strict=True))
    lanes = min(max(triton.next_power_of_2(distinct), 32), 1024)
    with _on(gap):
        kernels.solve[(1,)](
            keep_prob, gap, *pad, *size, *pad, *block, rate == "paper", lanes, num_warps=max(1, lanes // 256)
        )
    return gap


def draw(
    rng_seed: Tensor, blocks: Blocks, gap: Tensor | None = None, *, corners: bool = False, launch: Launch = LAUNCH
) -> Mask:
    """The mask of an RNG seed; `gap` is `mean_gap` where γ is not known here, and then that of `blocks` means nothing.

    Nothing is read back from the device.
    """
    if math.prod(blocks.size) >= MOST_UNITS_OF_A_PLANE:
        raise ValueError(f"a map for Triton must have fewer than 2^30 units, got one of {math.prod(blocks.size)}")
    if gap is None and blocks.gamma in (0.0, 1.0) and not corners:
        return _nothing_or_everything(blocks, rng_seed.device)
    device, units = rng_seed.device, blocks.units
    length = _parts(units, 64)
    # one tensor, so that zeros are written once
    zeros = torch.zeros(A_LINE + length * (2 if corners else 1), dtype=torch.int64, device=device)
    counted, rows = zeros[:A_LINE], zeros[A_LINE : A_LINE + length]
    noted = zeros[A_LINE + length :] if corners else None
    scale = torch.empty((), dtype=torch.float64, device=device)
    known = 0.0
    if gap is None and blocks.gamma < 1.0:
        known = min(-1.0 / math.log1p(-blocks.gamma), 1e30) if blocks.gamma else 1e30
    gap_high = struct.unpack("f", struct.pack("f", known))[0]  # a number that is given to a kernel has 32 bits
    pad = (1,) * (3 - len(blocks.size))
    size, valid = pad + blocks.size, pad + blocks.valid
    per_stream = stream_length(blocks)
    run = blocks.block[-1]
    streams = _parts(blocks.positions, per_stream)
    lanes, at_once = _fit(launch.lanes, streams), _fit(launch.words, length)
    with _on(zeros):
        kernels.draw_rows[(_parts(streams, lanes),)](
            rows.view(torch.int32),
            (rows if noted is None else noted).view(torch.int32),
            rng_seed,
            rng_seed if gap is None else gap,
            gap_high,
            known - gap_high,
            blocks.positions,
            per_stream,
            math.prod(valid),
            valid[1],
            valid[2],
            reciprocal(math.prod(valid)),
            reciprocal(valid[1]),
            reciprocal(valid[2]),
            math.prod(size),
            size[1] * size[2],
            size[2],
            run,
            _parts(31 + run, 32),
            GAP_IN_MEMORY=gap is not None,
            NOTE_CORNERS=corners,
            LANES=lanes,
            num_warps=1,
        )
        steps = growth(blocks.size, blocks.block)
        source = rows
        for i, step in enumerate(steps):
            target = torch.empty_like(rows)
            last = i == len(steps) - 1
            kernels.grow[(_parts(length, at_once),)](
                source, target, counted, scale, length, units, *step, COUNT=last, WORDS=at_once
            )
            source = target
    return Mask(source, scale, blocks, noted)


def _nothing_or_everything(blocks: Blocks, device: torch.device) -> Mask:
    everything, over = blocks.gamma == 1.0, blocks.units % 64
    words = torch.full((_parts(blocks.units, 64),), -1 if everything else 0, dtype=torch.int64, device=device)
    if everything and over:
        words[-1].fill_((1 << over) - 1)
    scale = torch.full((), blocks.units if everything else 1, dtype=torch.float64, device=device)
    return Mask(words, scale, blocks)


def apply(input: Tensor, output: Tensor, mask: Mask, *, launch: Launch = LAUNCH) -> None:
    """Write the input times the scale, and 0 where dropped, into `output`, which may be the input."""
    blocks, op = mask.blocks, DTYPES[input.dtype]
    policy = "evict_first" if input.nbytes > NO_LONGER_CACHED else ""
    lazy = input.is_neg() or output.is_neg()  # memory that does not hold what the tensor says
    if not blocks.shared and input.is_contiguous() and output.is_contiguous() and not lazy:
        count = input.numel()
        eights = _fit(launch.eights, _parts(count, 8))
        with _on(input):
            kernels.apply_flat[(_parts(count, 8 * eights),)](
                input, output, mask.words.view(torch.uint8), mask.scale, count, op, eights, policy
            )
        return
    lead = blocks.lead if len(blocks.lead) > 1 else (1, *blocks.lead)
    input_place, output_place = _strides(input, blocks), _strides(output, blocks)
    by_tiles = blocks.shared in ((), (len(blocks.lead) - 1,)) and not lazy
    if not by_tiles or input_place is None or output_place is None:
        # strides of no order, or a mask that is shared by what `torch.vmap` maps over
        output.copy_(sparse.masked(input, mask.dense(), mask.scale))
        return
    samples, channels, size = math.prod(lead[:-1]), lead[-1], math.prod(blocks.size)
    at_once = min(launch.channels, triton.next_power_of_2(channels))
    rows, columns = _parts(size, 32), _parts(channels, at_once)
    words = mask.words.view(torch.int32)
    shared = bool(blocks.shared)
    with _on(input):
        kernels.apply_tiles[(samples * rows * columns,)](
            input,
            output,
            words,
            mask.scale,
            len(words),
            rows * columns,
            columns,
            size,
            channels,
            size if shared else size * channels,
            0 if shared else size,
            *input_place,
            *output_place,
            op,
            at_once,
            policy,
        )


def channels_inside(mask: Mask) -> Tensor:
    """The mask with 32 channels to a word: int32 of shape (N, *size, ⌈C / 32⌉)."""
    blocks = mask.blocks
    samples, channels, size = math.prod(blocks.lead[:-1]), blocks.lead[-1], math.prod(blocks.size)
    rows, columns = _parts(size, 32), _parts(channels, 32)
    target = torch.empty((samples, *blocks.size, columns), dtype=torch.int32, device=mask.words.device)
    words = mask.words.view(torch.int32)
    with _on(target):
        kernels.channels_inside[(samples * rows * columns,)](words, target, len(words), size, channels, rows, columns)
    return target


def drop(input: Tensor, output: Tensor, rng_seed: Tensor, blocks: Blocks, gap: Tensor | None = None) -> None:
    """Draw and apply."""
    apply(input, output, draw(rng_seed, blocks, gap))


def why_not(device: torch.device, size: Size | None = None) -> str:
    """Why tensors on this device, with maps of this size, are not served; empty if they are."""
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"it runs on CUDA devices, and the input is on {device}"
    if device.type == "cuda" and _is_old(device):
        return f"Triton needs a GPU of compute capability 8.0 or more, and {device} is older"
    if size is not None and math.prod(size) >= MOST_UNITS_OF_A_PLANE:
        return f"it counts the positions of a map in 32 bits, and this one has {math.prod(size)}"
    return ""


@lru_cache
def _is_old(device: torch.device) -> bool:
    if torch.version.hip is not None or not torch.cuda.is_available():  # where there is none, tensors are fake
        return False
    return torch.cuda.get_device_capability(device) < (8, 0)


def _strides(tensor: Tensor, blocks: Blocks) -> tuple[int, int, int] | None:
    """The strides of samples, channels and units, if each has one."""
    lead, stride = len(blocks.lead), tensor.stride()
    sample = _one_stride(tensor.shape[: lead - 1], stride[: lead - 1])
    unit = _one_stride(tensor.shape[lead:], stride[lead:])
    return None if sample is None or unit is None else (sample, stride[lead - 1], unit)


def _one_stride(shape: Size, strides: Size) -> int | None:
    axes = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n > 1]
    if not axes:
        return 0
    if any(outer != n * inner for (_, outer), (n, inner) in itertools.pairwise(axes)):
        return None
    return axes[-1][1]


def _fit(launched: int, wanted: int) -> int:
    """How much one program does: in the interpreter no more than there is; on a GPU always the same."""
    return min(launched, max(1024, int(triton.next_power_of_2(wanted))))


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
