"""The layers as modules: checked settings and one functional call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Proxy

from ..backends import choice
from ..core import checks, geometry
from ..core.checks import BlockSize, Rate
from ..core.geometry import Size
from ..core.hints import hinted
from . import layouts, operators, variants
from .functional import drop_laid_out
from .layouts import Layout
from .record import Record
from .variants import Variant

if TYPE_CHECKING:
    from typing_extensions import Self


def call_in_trace(input: Proxy, module: nn.Module, attribute: str = "") -> Any:
    """Record a call of the module, or of one of its attributes, as one node of a trace of `torch.fx`.

    The traced call keeps the module's mode and keep_prob.
    """
    path = f"{input.tracer.path_of_module(module)}.{attribute}".strip(".")  # type: ignore[attr-defined]
    return input.tracer.create_proxy("call_module", path, (input,), {})


class DropBlockNd(nn.Module):
    dims: ClassVar[int]
    record: Record | None = None  # a schedule sets it
    # of a layer saved before it had them
    layout: Layout = "channels_first"
    share_batch, scale_by_keep, with_noise = False, True, False
    _variant: Variant | None = None
    _own_block: tuple[Any, Size] | None = None  # block_size and its entries, if a schedule sets a part of them
    _keep_prob_tensor: Tensor
    _sizes: Size

    @hinted(checks.SWAPPED.format(call="DropBlock2d(7, keep_prob=0.9)"))
    def __init__(
        self,
        block_size: BlockSize,
        *,
        keep_prob: float = 0.9,
        rate: Rate = "exact",
        share_channels: bool = False,
        share_batch: bool = False,
        scale_by_keep: bool = True,
        with_noise: bool = False,
        inplace: bool = False,
        layout: Layout = "channels_first",
    ) -> None:
        super().__init__()
        self.block_size: int | str | tuple[int | str, ...] = block_size  # type: ignore[assignment]
        self.keep_prob = keep_prob
        self.rate: Rate = rate
        self.share_channels = share_channels
        self.share_batch, self.scale_by_keep, self.with_noise = share_batch, scale_by_keep, with_noise
        self.inplace = inplace
        self.layout = layout

    @property
    def keep_prob(self) -> float:
        """Probability that a unit is kept; it can be assigned at any time."""
        return self._keep_prob

    @keep_prob.setter
    def keep_prob(self, value: float | Tensor) -> None:
        self._target_keep_prob = checks.probability("keep_prob", value)
        self._set_keep_prob(self._target_keep_prob)

    @property
    def target_keep_prob(self) -> float:
        """The `keep_prob` that was requested, and that a schedule ends at; assigning `keep_prob` sets it."""
        return self._target_keep_prob

    @property
    def target_block_size(self) -> int | str | tuple[int | str, ...]:
        """The `block_size` that was requested, and that a schedule ends at; assigning `block_size` sets it."""
        return self._own_block[0] if self._own_block else self.block_size

    def set_strength(self, strength: float, *, grow_block: bool = False) -> None:
        """Drop `strength` times the requested share: nothing at 0, all of it at 1. Schedules call this.

        Args:
            strength: a number in [0, 1].
            grow_block: also take `strength` times the requested block size, in units rounded down to at least 1.

        Examples:
            >>> layer = DropBlock2d(7, keep_prob=0.9)
            >>> layer.set_strength(0.5)
            >>> layer.keep_prob, layer.target_keep_prob
            (0.95, 0.9)
        """
        strength, target = checks.probability("strength", strength), self._target_keep_prob
        keep_prob = target if strength == 1.0 else 1.0 - strength * (1.0 - target)
        if grow_block or self._own_block:
            self._set_block(strength, grow_block)
            self._set_keep_prob(keep_prob)
        elif keep_prob != self._keep_prob:
            self._set_keep_prob(keep_prob)

    def _set_block(self, strength: float, grow_block: bool) -> None:
        requested, own = self._own_block or (self.block_size, self._sizes)
        self._own_block = (requested, own) if grow_block else None
        self._sizes = geometry.part(own, strength) if grow_block else own
        entries = geometry.entries_text(self._sizes)
        self.__dict__["block_size"] = entries if isinstance(requested, tuple) else entries[0]

    def _set_keep_prob(self, value: float, device: torch.device | None = None) -> None:
        self._keep_prob = value
        # Compiled code reads keep_prob from this tensor:
        # - a float would recompile for each new value;
        # - it is not a buffer, so `half()` does not round it, DDP does not broadcast it, and it is not saved;
        # - it is replaced, not filled, so that a pending backward pass sees the value of its forward pass; but on a GPU
        #   it keeps its address, which CUDA graphs remember, and the backward pass has a table;
        # - it has one dimension, since the compiler first tries a tensor of no dimensions as a float and starts again;
        # - it is on the CPU unless γ is solved on the layer's device: CUDA graphs read CPU values only once;
        # - it has the entries of a growing block too, which the host needs, so that they are no constants either.
        if self._own_block:
            device = torch.device("cpu")
        elif device is None:
            device = self._keep_prob_tensor.device if hasattr(self, "_keep_prob_tensor") else torch.device("cpu")
        with torch.inference_mode(False):
            tensor = getattr(self, "_keep_prob_tensor", None)
            if self._own_block:
                tensor = torch.tensor([value, *self._sizes], dtype=torch.float64, device=device)
            elif device.type == "cpu" or not _is_plain(tensor, device):
                tensor = operators.note(torch.full((1,), value, dtype=torch.float64, device=device), value)
            else:
                operators.note(tensor.fill_(value), value)
            self._keep_prob_tensor = tensor

    def __setattr__(self, name: str, value: Any) -> None:
        """Check settings when they are assigned, so that forward passes need no checks."""
        if name == "block_size":
            self._sizes = checks.block_size(value, self.dims)
            entries = geometry.entries_text(self._sizes)
            value = entries if isinstance(value, Sequence) and not isinstance(value, str) else entries[0]
            if self._own_block:
                self._own_block = None
                self._set_keep_prob(self._keep_prob)
        elif name == "rate":
            checks.rate(value)
        elif name in ("share_channels", "inplace"):
            checks.flag(name, value)
        elif name == "layout":
            value = layouts.checked(value, self.dims)
        elif name in Variant._fields:
            options = {field: getattr(self, field) for field in Variant._fields} | {name: value}
            self._variant = variants.variant_of(**options)
        if isinstance(value, nn.Parameter) and isinstance(getattr(type(self), name, None), property):
            value = value.detach()  # else it would be registered as a parameter, past the property
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with torch.inference_mode(False):
            device = fn(torch.empty(0, device="cpu")).device
        # rebuild the tensor: a layer built with fake tensors gets a real one
        self._set_keep_prob(self._keep_prob, device if choice.solves_gamma(device) else torch.device("cpu"))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _keep_prob_at(self, device: torch.device) -> str:
        """Move the tensor that compiled code reads to the device that suits `device`, and return that device's name.

        An inserted layer is not a member of the model, so `model.cuda()` does not move it.
        """
        there = device if choice.solves_gamma(device) and not self._own_block else torch.device("cpu")
        noted = self._own_block or operators.noted(self._keep_prob_tensor) is not None  # not that of a copied layer
        if self._keep_prob_tensor.device != there or not noted:
            with unset_fake_temporarily():
                self._set_keep_prob(self._keep_prob, there)
        return str(there)

    # It runs during compilation and leaves no operation in the graph; see `choice.serving_compiled`.
    _keep_prob_at._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return call_in_trace(input, self)
        return self.drop(input, self.training, self.inplace)

    def drop(self, input: Tensor, training: bool, inplace: bool) -> Tensor:
        """Run `forward` with these values of `training` and `inplace` instead of the layer's own."""
        if not training:
            return input
        keep_prob: float | Tensor
        if torch.compiler.is_compiling():  # PyTorch 2.8 would recompile for a value that is only read
            self._keep_prob_at(input.device)
            keep_prob, record = self._keep_prob_tensor, None
            sizes = self._sizes if self._own_block is None else self._own_block[1]
        else:
            keep_prob, record, sizes = self._keep_prob, self.record, self._sizes
        return drop_laid_out(
            input,
            self.layout,
            sizes,
            keep_prob,
            self.rate,
            self.share_channels,
            inplace,
            record=record,
            variant=self._variant,
        )

    def extra_repr(self) -> str:
        names = ["block_size", "keep_prob", "rate", "share_channels", "inplace"]
        if self.keep_prob != self.target_keep_prob:
            names.insert(2, "target_keep_prob")
        if self.block_size != self.target_block_size:
            names.insert(1, "target_block_size")
        defaults = {**Variant._field_defaults, "layout": "channels_first"}
        names += [name for name, default in defaults.items() if getattr(self, name) != default]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _is_plain(tensor: Any, device: torch.device) -> TypeGuard[Tensor]:
    """Return True for a tensor of one dimension on this device that may be written."""
    return type(tensor) is Tensor and tensor.device == device and tensor.numel() == 1 and not tensor.is_inference()


class DropBlock1d(DropBlockNd):
    """Drop contiguous stretches of signals of shape (N, C, L) or (C, L) in training; otherwise like `DropBlock2d`."""

    dims = 1


class DropBlock2d(DropBlockNd):
    """Drop contiguous blocks of feature maps in training and scale the rest; in evaluation do nothing.

    See `drop_block2d` for details and for the tensors it takes. The layer has no entry in a state_dict.

    Args:
        block_size: height and width of a block, one for both or two: units, clamped to the map, or a share of the map
            such as `"30%"`.
        keep_prob: probability that a unit is *kept*, in [0, 1]; `p` of `nn.Dropout` and of torchvision's layer is
            1 - keep_prob. It can be read and assigned at any time.
        rate: `"exact"` keeps `keep_prob` of the units on average; `"paper"` uses the paper's γ, which keeps more.
        share_channels: one mask per sample for all of its channels.
        share_batch: one mask for all samples.
        scale_by_keep: scale the kept units; if False they stay as they are.
        with_noise: standard normal noise where dropped instead of 0.
        inplace: write into the input.
        layout: `"channels_first"`, `"channels_last"` for (N, H, W, C), `"tokens"` for a square grid of tokens behind a
            prefix that is not dropped, (N, prefix + H·W, C), or the size of a grid that is not square.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range.

    Processes with equal seeds draw equal masks: `torch.manual_seed(seed + rank)` gives each rank its own.

    Source: Ghiasi, Lin, Le, "DropBlock", NeurIPS 2018, algorithm 1.

    Examples:
        >>> layer = DropBlock2d(7, keep_prob=0.9)
        >>> layer
        DropBlock2d(block_size=7, keep_prob=0.9, rate='exact', share_channels=False, inplace=False)
        >>> share_dropped = (layer(torch.ones(64, 128, 28, 28)) == 0).float().mean().item()
        >>> round(share_dropped, 2)
        0.1
    """

    dims = 2


class DropBlock3d(DropBlockNd):
    """Drop contiguous blocks of volumes of shape (N, C, D, H, W) or (C, D, H, W); otherwise like `DropBlock2d`."""

    dims = 3


class DropBlock(DropBlock2d):
    """The layer of the article "A better Dropout! Implementing DropBlock in PyTorch", whose code runs unchanged.

    `p` is the probability that a unit is *kept*, as in the article and unlike `p` of `nn.Dropout`. γ is equation 1
    of the paper, as in the article, so somewhat more than `p` is kept; `DropBlock2d` keeps exactly `keep_prob` on
    average. Unlike the article's, blocks lie whole inside the map, which may have any shape and be smaller than a
    block.

    Args:
        block_size: height and width of a block, one int for both or two; clamped to the map.
        p: probability that a unit is kept, in [0, 1].

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range.

    Examples:
        >>> DropBlock(block_size=2).calculate_gamma(torch.ones(1, 8, 16, 16))
        0.14222222222222222
    """

    @hinted(
        "DropBlock(7, p=0.9) is the article's layer, whose p is the probability that a unit is kept; "
        "DropBlock2d(7, keep_prob=0.9) has the other options"
    )
    def __init__(self, block_size: BlockSize, p: float = 0.5) -> None:
        super().__init__(block_size, keep_prob=checks.probability("p", p), rate="paper")

    @property
    def p(self) -> float:
        """Probability that a unit is kept; another name for `keep_prob`."""
        return self.keep_prob

    @p.setter
    def p(self, value: float) -> None:
        self.keep_prob = checks.probability("p", value)

    def calculate_gamma(self, x: Tensor) -> float:
        """Return γ of equation 1 of the paper for feature maps `x` of shape (N, C, H, W) or (C, H, W)."""
        size = tuple(checks.feature_map(x, self.dims).shape[-self.dims :])
        return geometry.seed_probability(size, self.block_size, self.keep_prob, "paper")

    def extra_repr(self) -> str:
        target = "" if self.keep_prob == self.target_keep_prob else f", target_keep_prob={self.target_keep_prob!r}"
        return f"block_size={self.block_size!r}, p={self.p!r}{target}"
