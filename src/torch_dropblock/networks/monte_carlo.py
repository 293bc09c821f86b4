"""`mc_dropblock`: drop in evaluation mode, to estimate the uncertainty of a network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from . import modes, notices, sites


@contextmanager
def mc_dropblock(model: nn.Module) -> Iterator[nn.Module]:
    """Let the DropBlock layers of a model drop while everything else is in evaluation mode: Monte Carlo DropBlock.

    Each forward pass in this context draws new masks. The spread of the predictions over several passes estimates
    the model's uncertainty. Afterwards the mode of every module is restored.

    Contexts may overlap, in threads, tasks and generators; the last one to end restores the modes. While one is open,
    the layers drop in every call of the model.

    Args:
        model: a network with DropBlock layers, inserted or its own; it may be wrapped or compiled.

    Raises:
        TypeError: `model` is not a module.
        ValueError: it has no DropBlock layer.
        RuntimeError: inserted layers were lost.

    Warns:
        UserWarning: every layer has keep_prob 1; or inserted layers act inside an adapter, before it adds its own
            part, or are missing in a trace of `torch.fx`.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016; here blocks are dropped, not units.

    Examples:
        >>> import torch
        >>> from torch_dropblock import DropBlock2d
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock2d(3), nn.Flatten(), nn.LazyLinear(10)).eval()
        >>> x = torch.randn(4, 3, 16, 16)
        >>> with torch.no_grad(), mc_dropblock(model):
        ...     probabilities = torch.stack([model(x).softmax(-1) for _ in range(20)])
        >>> mean = probabilities.mean(0)
        >>> predictive_entropy = -(mean * mean.log()).sum(-1)
        >>> predictive_entropy.shape
        torch.Size([4])
    """
    layers = [site.layer for site in sites.find_some(model).values()]
    if all(layer.keep_prob == 1.0 for layer in layers):
        warnings.warn(
            "keep_prob of every DropBlock layer is 1, for example because a schedule has not begun: nothing will be "
            "dropped, and all passes will be equal",
            UserWarning,
            stacklevel=3,  # past the decorator's frame
        )
    for notice in notices.of(model):
        warnings.warn(notice, UserWarning, stacklevel=3)
    dropping = {id(layer) for layer in layers}
    hold = modes.Hold((module, id(module) in dropping) for module in sites.all_modules(model))
    try:
        try:
            hold.take()
            yield model
        finally:
            hold.give_back()
    finally:
        hold.give_back()  # an interrupt may have cut the first call short
