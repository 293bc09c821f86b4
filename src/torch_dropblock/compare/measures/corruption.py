"""Accuracy on corrupted images."""

from __future__ import annotations

import statistics
from typing import Any

from .corruptions import LEVELS
from .trained import Trained


def measure(trained: Trained) -> dict[str, Any]:
    """Return pairs of level and accuracy for each kind, and the mean of all these accuracies."""
    curves: dict[str, list[list[float]]] = {kind: [] for kind in LEVELS}
    for kind, level, images in trained.images.corrupted():
        curves[kind].append([level, trained.accuracy(images)])
    return {"mean": statistics.mean(value for curve in curves.values() for _, value in curve), **curves}
