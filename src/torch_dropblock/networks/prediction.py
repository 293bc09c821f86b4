"""`mc_predict`: a prediction with its uncertainty, from passes of `mc_dropblock`."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core import checks
from ..core.keys import draw_key_number, supplied, word
from . import sites
from .monte_carlo import mc_dropblock

# Passes run together while their input has at most this many elements: 27 images of 3×224×224.
ELEMENTS = 2**22
# the compiler's stance is that of the whole process
_STANCE = threading.RLock()


class Prediction(NamedTuple):
    """Prediction of `mc_predict` for N inputs.

    Attributes:
        mean_probability: mean of the passes' probabilities, (N, classes, ...).
        predictive_entropy: entropy of that mean in nats, from 0 to log(classes), (N, ...).
        mutual_information: predictive entropy minus the mean entropy of the passes, in nats, (N, ...). It is 0 if all
            passes agree.
    """

    mean_probability: Tensor
    predictive_entropy: Tensor
    mutual_information: Tensor


@torch.no_grad()
def mc_predict(model: nn.Module, input: Tensor, passes: int = 20, *, key: int | Tensor | None = None) -> Prediction:
    """Predict with several passes of `mc_dropblock`, and measure how much they agree.

    Passes of a small input run together: it is repeated to at most 2²² elements. Each layer then counts its units over
    all of these passes. This depends on the shape of the input alone, not on the memory at hand. If a layer has
    `share_batch`, each pass runs alone.

    The layers take their keys from `key`, in the order of their calls. One key means the same masks on every device,
    and no generator is touched. Compiled parts of the model run in eager mode, in the whole process until the passes
    are done.

    Args:
        model: a network with DropBlock layers that returns logits of shape (N, classes), or (N, classes, ...) such as
            those of a segmentation.
        input: a tensor of shape (N, ...).
        passes: number of passes.
        key: 64 bits, as for `drop_block2d`; drawn from PyTorch's generator of the CPU if None.

    Raises:
        TypeError: an argument, or what the model returns, is of the wrong type.
        ValueError: an argument, or the shape that the model returns, is out of its range; or the model has no DropBlock
            layer; or it is an `nn.DataParallel`, whose threads call the layers in any order.
        RuntimeError: inserted layers were lost.

    Warns:
        UserWarning: as for `mc_dropblock`.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016; Houlsby et al., arXiv 1112.5745.

    Examples:
        >>> import torch
        >>> from torch_dropblock import DropBlock2d
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock2d(3), nn.Flatten(), nn.LazyLinear(10))
        >>> mean, entropy, information = mc_predict(model, torch.randn(4, 3, 16, 16), key=1)
        >>> mean.shape, entropy.shape, information.shape
        (torch.Size([4, 10]), torch.Size([4]), torch.Size([4]))
    """
    passes = checks.whole_number("passes", passes, at_least=1)
    key = checks.key(key, None)
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a tensor of shape (N, ...), got {type(input).__name__}")
    if not input.dim() or not len(input):
        raise ValueError(f"input must be a tensor of shape (N, ...) with N at least 1, got shape {tuple(input.shape)}")
    if isinstance(model, nn.Module) and any(isinstance(module, nn.DataParallel) for module in model.modules()):
        raise ValueError("model must not be an nn.DataParallel, got one; pass its attribute `module`")
    number = draw_key_number(None) if key is None else int(key)
    together = min(passes, max(1, ELEMENTS // max(1, input.numel())))
    if isinstance(model, nn.Module) and any(site.layer.share_batch for site in sites.present(model)):
        together = 1  # passes of one batch would share a mask
    total: Tensor | float = 0.0
    entropies: Tensor | float = 0.0
    with mc_dropblock(model), _eager():
        for group, first in enumerate(range(0, passes, together)):
            count = min(together, passes - first)
            with supplied(word(number, group, index) for index in itertools.count()):
                logits = _logits(model(torch.cat([input] * count) if count > 1 else input), count * len(input))
            probabilities = logits.softmax(1).view(count, len(input), *logits.shape[1:])
            total = total + probabilities.sum(0)
            entropies = entropies + torch.special.entr(probabilities).sum(2).sum(0)
    mean: Tensor = total / passes  # type: ignore[assignment]
    entropy = torch.special.entr(mean).sum(1)
    return Prediction(mean, entropy, (entropy - entropies / passes).clamp(min=0.0))


def _logits(output: object, samples: int) -> Tensor:
    """Return logits in float32 or float64."""
    wanted = "model must return logits as one floating-point tensor of shape (N, classes, ...)"
    if not isinstance(output, Tensor) or not output.is_floating_point():
        got = f"a tensor of dtype {output.dtype}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise TypeError(f"{wanted}, got {got}; wrap it in a module that does")
    if output.dim() < 2 or len(output) != samples:
        raise ValueError(f"{wanted}, got shape {tuple(output.shape)} for {samples} samples")
    return output.to(torch.promote_types(output.dtype, torch.float32))


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled code in eager mode, where keys can be supplied; calls in several threads take turns."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and its import takes a second
        yield
        return
    with _STANCE, torch.compiler.set_stance("force_eager"):
        yield
