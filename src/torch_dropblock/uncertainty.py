"""`mc_dropblock`: DropBlock in evaluation, to see how sure a network is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from . import sites


@contextmanager
def mc_dropblock(model: nn.Module) -> Iterator[nn.Module]:
    """Let the DropBlock layers of a model drop while everything else is in evaluation mode: Monte Carlo DropBlock.

    Each forward pass in this context draws new masks. The spread of the predictions over several passes estimates
    the model's uncertainty. Afterwards every module is in the mode in which it was.

    Args:
        model: a network with DropBlock layers, inserted or its own; it may be wrapped or compiled.

    Raises:
        TypeError: `model` is no module.
        ValueError: it has no DropBlock layer.
        RuntimeError: layers that were inserted are no longer there.

    Warns:
        UserWarning: every layer has keep_prob 1.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016, with blocks for units.

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
            "keep_prob of every DropBlock layer is 1, as where a schedule has not begun: nothing will be dropped, and "
            "every pass will give the same",
            UserWarning,
            stacklevel=3,  # past the decorator's frame
        )
    with sites.evaluating(model):
        for layer in layers:
            layer.training = True
        yield model
