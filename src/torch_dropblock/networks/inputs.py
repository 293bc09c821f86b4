"""Inputs for a model: made from shapes, and made again with a larger batch, height, width or depth.

    (1, 3, 224, 224)            one tensor                  model(x)
    [(1, 3, 64, 64), (1, 8)]    several tensors             model(x, y)
    {"pixel_values": (...)}     keywords                    model(pixel_values=x)
    [[(3, 64, 64)]]             a list as one argument      model([x])
    [{"image": (...)}]          a dict as one argument      model({"image": x})

A tensor can stand for its shape anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from ..core import checks
from ..core.geometry import Size

InputSize = Sequence[Any] | Mapping[str, Any] | Tensor


@dataclass(frozen=True)
class Inputs:
    """Arguments of a model's forward pass; a list holds the images of a batch, one by one."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, input_size: InputSize) -> Inputs:
        """Make zeros of the dtype and on the device of the model's first parameter; keep tensors as they are."""
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))

        def made(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value
            if _is_shape(value):
                size = checks.positive_ints("input_size", value, len(value))
                return torch.zeros(size, dtype=like.dtype, device=like.device)
            if isinstance(value, Mapping) and value:
                return {key: made(entry) for key, entry in value.items()}
            if isinstance(value, Sequence) and not isinstance(value, str) and value:
                return [made(entry) for entry in value]
            raise TypeError(f"input_size must be the shape of an input, such as (1, 3, 224, 224), got {input_size!r}")

        inputs = made(input_size)
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        return cls(tuple(inputs) if isinstance(inputs, list) else (inputs,), {})

    @property
    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        self._mapped(lambda tensor, _: found.append(tensor))
        return found

    def batch(self, dims: int) -> int | None:
        """Return the batch size: that of the first tensor with `dims` map dimensions; None if there is no such."""
        sizes: list[int] = []

        def look(value: Any, in_list: bool) -> None:
            if isinstance(value, Tensor) and not in_list and value.dim() in (dims + 1, dims + 2):
                sizes.append(value.shape[0])

        self._mapped(look)
        return next(iter([*sizes, *map(len, self._lists())]), None)

    def _lists(self) -> list[list[Any]]:
        """Return the lists of images, wherever they are."""

        def walk(value: Any) -> Iterator[list[Any]]:
            if isinstance(value, list):
                yield value
            elif isinstance(value, dict):
                for entry in value.values():
                    yield from walk(entry)

        return [found for value in (*self.args, *self.kwargs.values()) for found in walk(value)]

    def image(self, dims: int) -> Size:
        """Return the spatial size of the first tensor with `dims` map dimensions, in the batch or without it."""
        return next(tuple(x.shape[-dims:]) for x in self.tensors if x.dim() in (dims + 1, dims + 2))

    def with_batch_doubled(self, dims: int) -> Inputs:
        batch = self.batch(dims)

        def doubled(tensor: Tensor, in_list: bool) -> Tensor:
            same = not in_list and tensor.dim() > 0 and tensor.shape[0] == batch
            return torch.cat([tensor, tensor]) if same else tensor

        larger = self._mapped(doubled)
        for images in larger._lists():
            images += images
        return larger

    def with_side_doubled(self, dims: int, side: int, channels_last: bool = False) -> Inputs:
        """Double one side of every map: of (N, C, *S), of (N, *S, C) if `channels_last`, and of (N, *S) or (C, *S)."""

        def doubled(tensor: Tensor, _: bool) -> Tensor:
            if tensor.dim() not in (dims + 1, dims + 2):
                return tensor
            axis = side + (1 if channels_last or tensor.dim() == dims + 1 else 2)
            return torch.cat([tensor, tensor], axis)

        return self._mapped(doubled)

    def mapped(self, change: Callable[[Tensor], Any]) -> Inputs:
        return self._mapped(lambda tensor, _: change(tensor))

    def _mapped(self, change: Callable[[Tensor, bool], Any]) -> Inputs:
        def walk(value: Any, in_list: bool) -> Any:
            if isinstance(value, Tensor):
                return change(value, in_list)
            if isinstance(value, list):
                return [walk(entry, True) for entry in value]
            return {key: walk(entry, in_list) for key, entry in value.items()}

        args = tuple(walk(arg, False) for arg in self.args)
        return Inputs(args, {key: walk(value, False) for key, value in self.kwargs.items()})


def does_not_run(tensors: Sequence[Tensor], error: Exception) -> ValueError:
    """Say on which inputs a model fails; without a batch, the most common mistake, say how the shape begins."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    batch = next((f", such as {(1, *shape)}" for shape in shapes if len(shape) == 3), "")
    named = " and ".join(map(str, shapes))
    return ValueError(f"the model does not run on an input of shape {named} (batch first{batch}): {error}")


def _is_shape(value: object) -> bool:
    """Return True for a sequence that begins with a number, even one that is no size: its check explains."""
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Number)
