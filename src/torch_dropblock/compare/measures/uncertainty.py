"""Uncertainty: the average over passes with the noise left on, and whether its entropy tells what is wrong or foreign.

Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016; the area under the risk-coverage curve is
that of Geifman et al., ICLR 2019.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from ...networks.prediction import mc_predict
from .calibration import expected_error
from .trained import Trained

PASSES = 20


def measure(trained: Trained) -> dict[str, Any]:
    """Average the passes of a network that drops; any other network has one prediction.

    Returns accuracy and calibration error of the average, and three areas: under the ROC curve of its entropy for
    errors and for images of other things, and under the risk-coverage curve.
    """
    images = trained.images
    passes = PASSES if trained.drops else 1
    if trained.drops:
        with torch.random.fork_rng(devices=[images.val.device] if images.val.device.type == "cuda" else []):
            torch.manual_seed(trained.seed)  # of the keys, and of the rows that draw by themselves
            mean, others = (averaged(trained, tensor, passes) for tensor in (images.val, images.others))
    else:
        mean, others = trained.clean.softmax(1), trained.logits(images.others).softmax(1)
    wrong = mean.argmax(1) != images.labels
    inside, outside = entropy(mean), entropy(others)
    return {
        "passes": passes,
        "top1": trained.share_right(mean),
        "ece": expected_error(mean, images.labels),
        "auroc_errors": auroc(inside[wrong], inside[~wrong]),
        "aurc": aurc(inside, wrong),
        "auroc_others": auroc(outside, inside),
        "others": images.others_name,
    }


def averaged(trained: Trained, images: Tensor, passes: int) -> Tensor:
    """Return the mean of the passes' probabilities (N, classes)."""
    batches = trained.split(images)
    return torch.cat([mc_predict(trained.finite, batch, passes).mean_probability for batch in batches])


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of distributions (N, classes), as a share of the highest possible."""
    nats: Tensor = torch.special.entr(probabilities).sum(1)
    return nats / math.log(probabilities.shape[1])


def auroc(higher: Tensor, lower: Tensor) -> float:
    """Return the probability that one of `higher` is above one of `lower`; NaN if either is empty."""
    if not len(higher) or not len(lower):
        return math.nan
    scores = torch.cat([higher, lower]).clamp(0, 1)  # torchmetrics takes others for logits
    targets = torch.cat([torch.ones_like(higher), torch.zeros_like(lower)]).long()
    return binary_auroc(scores, targets, validate_args=False).item()


def aurc(uncertainty: Tensor, wrong: Tensor) -> float:
    """Return the mean error rate of the most certain 1, 2, … N images."""
    sorted_wrong = wrong[uncertainty.argsort(stable=True)].double()
    return (sorted_wrong.cumsum(0) / torch.arange(1, len(wrong) + 1, device=wrong.device)).mean().item()
