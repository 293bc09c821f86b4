"""Calibration: whether a network is right as often as its confidence says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from .trained import Trained

BINS = 15


def measure(trained: Trained) -> dict[str, Any]:
    """Return the expected calibration error, the negative log-likelihood, and the bins of a reliability diagram."""
    logits, labels = trained.clean, trained.images.labels
    probabilities = logits.softmax(1)
    return {
        "ece": expected_error(probabilities, labels),
        "nll": nn.functional.cross_entropy(logits, labels).item(),
        "bins": reliability(probabilities, labels),
    }


def expected_error(probabilities: Tensor, labels: Tensor) -> float:
    classes = probabilities.shape[1]
    return multiclass_calibration_error(probabilities, labels, classes, BINS, "l1", validate_args=False).item()


def reliability(probabilities: Tensor, labels: Tensor) -> list[list[float]]:
    """Return mean confidence, accuracy and share of the images for each bin of confidence that has any."""
    confidences, predicted = probabilities.double().max(1)
    bins = (confidences * BINS).ceil().long().clamp(1, BINS) - 1  # a bin holds its upper end, as in torchmetrics
    values = torch.stack([confidences, (predicted == labels).double(), torch.ones_like(confidences)])
    sums = torch.zeros(3, BINS, dtype=values.dtype, device=values.device).index_add_(1, bins, values)
    return [[c / n, a / n, n / len(labels)] for c, a, n in sums.T.tolist() if n]
