"""Shared code of the callbacks: checked options, lines for a log, steps, and random streams of ranks."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from ..layer.modules import DropBlock2d
from ..networks.schedule import Curve, KeepProbSchedule


def check_options(curve: str | Curve, total_steps: int | None = None, grow_blocks: bool = False) -> None:
    """Raise if the options of a schedule are wrong: now, not hours later when a training begins."""
    KeepProbSchedule(DropBlock2d(1), 1 if total_steps is None else total_steps, curve=curve, grow_blocks=grow_blocks)


def log_lines(schedule: KeepProbSchedule) -> dict[str, float]:
    """Return `schedule.stats()` under names for a log, `dropblock/keep_prob` and so on."""
    return {f"dropblock/{name}": value for name, value in schedule.stats().items()}


def step_to(schedule: KeepProbSchedule, steps: int) -> None:
    """Step a schedule until it counts as many steps as the framework."""
    while schedule.steps < steps:
        schedule.step()


def generators_of(module: nn.Module) -> list[torch.Generator]:
    """Return PyTorch's default generators that a training may use: the CPU's, then those of the module's devices."""
    generators = [torch.default_generator]
    for device in sorted({parameter.device for parameter in module.parameters()}, key=str):
        if device.type in ("cuda", "xpu"):
            generators.append(torch.get_device_module(device).default_generators[device.index])
        elif device.type == "mps":
            generators.append(torch.mps._get_default_mps_generator())
    return generators


def mask_generators(generators: list[torch.Generator]) -> list[int]:
    """Return the indices of the generators that masks are drawn from: the devices', or else the CPU's."""
    return list(range(1, len(generators))) or [0]


def hash_of(data: bytes) -> int:
    """Return a hash of 63 bits."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1
