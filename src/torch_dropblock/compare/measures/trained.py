"""A trained network with what several measures need of it, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .images import Images

# pixels of a batch: 2,048 images of 32×32, or 41 of 224×224
BATCH_PIXELS = 2**21


class Finite(nn.Module):
    """A model in a context such as autocast, with float32 logits; those of a network that diverged are equal."""

    def __init__(self, model: nn.Module, context: Callable[[], AbstractContextManager[object]]) -> None:
        super().__init__()
        self.model, self.context = model, context

    def forward(self, images: Tensor) -> Tensor:
        with self.context():
            logits: Tensor = self.model(images)
        return logits.float().nan_to_num(0.0, 0.0, 0.0)


@dataclass
class Trained:
    """A trained network and the images to measure it on.

    Args:
        model: maps uint8 images to logits; its `network` is a ResNet with torchvision's names.
        images: the images.
        drops: whether the network has layers that drop.
        seed: seed of PyTorch's generator for what they drop.
        context: makes the context of a forward pass, such as autocast.
    """

    model: nn.Module
    images: Images
    drops: bool = False
    seed: int = 0
    context: Callable[[], AbstractContextManager[object]] = nullcontext

    @cached_property
    def finite(self) -> nn.Module:
        return Finite(self.model, self.context)

    def split(self, images: Tensor) -> tuple[Tensor, ...]:
        return torch.split(images, max(1, BATCH_PIXELS // images.shape[-1] ** 2))

    @torch.no_grad()
    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the logits of batches of images."""
        yield from map(self.finite, self.split(images))

    def logits(self, images: Tensor) -> Tensor:
        return torch.cat(list(self.batches(images)))

    def accuracy(self, images: Tensor) -> float:
        """Return the accuracy on variants of the validation images."""
        return self.share_right(self.logits(images))

    def share_right(self, scores: Tensor) -> float:
        return (scores.argmax(1) == self.images.labels).double().mean().item()

    @property
    def clean(self) -> Tensor:
        """Logits of the validation images (N, classes)."""
        return self._clean_pass[0]

    @property
    def spreads(self) -> Tensor:
        """Share of each validation image's class activation map above half of its maximum (N,)."""
        return self._clean_pass[1]

    @cached_property
    def _clean_pass(self) -> tuple[Tensor, Tensor]:
        maps: list[Tensor] = []
        network: nn.Module = self.model.network  # type: ignore[assignment]
        hook = network.get_submodule("avgpool").register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        weights: Tensor = network.get_submodule("fc").weight  # type: ignore[assignment]
        logits, spreads = [], []
        try:
            for batch in self.batches(self.images.val):
                logits.append(batch)
                spreads.append(spread(maps.pop().float(), weights.detach()[batch.argmax(1)].float()))
        finally:
            hook.remove()
        return torch.cat(logits), torch.cat(spreads)


def spread(maps: Tensor, weights: Tensor) -> Tensor:
    """Return the share of each map (N, K, H, W), weighted by (N, K), above half of its maximum.

    A map without a value above 0 has no such part, so its share is 0.
    """
    activation = (maps * weights[:, :, None, None]).sum(1).flatten(1)
    half = activation.amax(1, keepdim=True).clamp(min=0) / 2
    return (activation > half).float().mean(1)
