"""All argument checks and their messages.

A check returns its argument in the one form that the rest of the library uses, or raises `TypeError` (wrong type) or
`ValueError` (wrong value). The message has the argument's name, the constraint and the value.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

Rate = Literal["exact", "paper"]
RATES = get_args(Rate)
BlockSize = int | str | Sequence[int | str]
# "100%" of a map, see `block_size`
WHOLE_MAP = 1_000_000
# PyTorch stores sizes as int64.
TOO_LARGE = 2**63
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

SWAPPED = (
    "the block size comes first here and keep_prob is a keyword: {call}. torchvision's DropBlock2d(p, block_size) has "
    "them the other way round, and its p, as that of nn.Dropout, is the share dropped: keep_prob = 1 - p"
)


def positive_ints(name: str, value: object, dims: int | None) -> tuple[int, ...]:
    """Return a positive int or a sequence of them as a tuple; repeat an int `dims` times, or once if `dims` is None."""
    if type(value) is int and 0 < value < TOO_LARGE:  # the common case first, since layers check at each call
        return (value,) * (dims or 1)
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    entries = tuple(value) if several else (value,) * (dims or 1)  # type: ignore[arg-type]
    wanted = "a positive int" if dims == 1 else f"a positive int or a sequence of {dims or '1 to 3'} of them"
    if not all(map(_is_int, entries)):
        raise TypeError(f"{name} must be {wanted}, got {shown(value)}")
    sizes = tuple(operator.index(entry) for entry in entries)  # type: ignore[arg-type]
    right_length = 1 <= len(sizes) <= 3 if dims is None else len(sizes) == dims
    if not right_length or min(sizes) < 1:
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    if max(sizes) >= TOO_LARGE:
        raise ValueError(f"{name} must be below 2**63, got {shown(value)}")
    return sizes


def block_size(value: object, dims: int) -> tuple[int, ...]:
    """Return a block size as one int for each dimension.

    A share of the map, a string such as "30%", becomes its millionths, negative: -300000. `geometry.clamp` turns it
    into units.
    """
    if type(value) is int and 0 < value < TOO_LARGE:  # the common case first, since functions check at each call
        return (value,) * dims
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    entries = tuple(value) if several else (value,) * dims  # type: ignore[arg-type]
    sequence = f", or a sequence of {dims} of them" if dims > 1 else ""
    wanted = f"block_size must be a positive int or a share of the map such as '30%'{sequence}, got {shown(value)}"
    for entry in entries:
        if not isinstance(entry, str) and not _is_int(entry):
            swapped = "; " + SWAPPED.format(call="DropBlock2d(7, keep_prob=0.9)") if isinstance(entry, float) else ""
            raise TypeError(wanted + swapped)
    sizes = tuple(_share(entry) if isinstance(entry, str) else operator.index(entry) for entry in entries)  # type: ignore[arg-type]
    units = [size for entry, size in zip(entries, sizes, strict=True) if not isinstance(entry, str)]
    if len(sizes) != dims or 0 in sizes or min(units, default=1) < 1:
        raise ValueError(wanted)
    if max(sizes) >= TOO_LARGE:
        raise ValueError(f"block_size must be below 2**63, got {shown(value)}")
    return sizes


def _share(text: str) -> int:
    """Return a share in millionths, negative; 0 if it is none."""
    try:
        percent = float(text[:-1]) if text.endswith("%") else 0.0
    except ValueError:
        return 0
    return -round(percent * WHOLE_MAP / 100) if 0.0 < percent <= 100.0 else 0


def sizes(name: str, value: object) -> tuple[int, ...]:
    """Check the shape of a tensor, in which sizes may be 0, and return it as a tuple."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    return tuple(whole_number(f"{name}[{i}]", entry, at_least=0) for i, entry in enumerate(value))


def whole_number(name: str, value: object, at_least: int) -> int:
    wanted = f"{name} must be an int of at least {at_least}"
    if not _is_int(value):
        raise TypeError(f"{wanted}, got {shown(value)} of type {type(value).__name__}")
    number = operator.index(value)  # type: ignore[arg-type]
    if number < at_least:
        raise ValueError(f"{wanted}, got {shown(value)}")
    return number


def spatial_dims(value: object) -> int:
    """Check the argument `dims`, the number of dimensions of a map."""
    number = whole_number("dims", value, at_least=1)
    if number > 3:
        raise ValueError(f"dims must be 1, 2 or 3, got {shown(value)}")
    return number


def _is_int(value: object) -> bool:
    """Return True for an integer, NumPy's included, but not for a bool, which is usually a mistake."""
    if isinstance(value, (bool, Tensor)):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # arrays have `__index__`, but it works only for a single integer
        return False
    return True


def probability(name: str, value: object) -> float:
    """Return a number in [0, 1], or a floating-point tensor of no dimensions that holds one, as a float."""
    if type(value) is float and 0.0 <= value <= 1.0:  # the common case first, since layers check at each call
        return value
    if isinstance(value, Tensor):
        value = scalar(name, value).item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in [0, 1], got {shown(value)} of type {type(value).__name__}")
    if not 0 <= value <= 1:  # type: ignore[operator]  # false for NaN too; a float of an int may not exist
        raise ValueError(f"{name} must be a number in [0, 1], got {shown(value)}")
    return float(value)


def shown(value: object) -> str:
    """Format a value for a message; Python refuses to format ints of more than 4,300 digits."""
    try:
        return repr(value)
    except ValueError:
        return f"a value of type {type(value).__name__} that is too long to be written out"


def scalar(name: str, value: Tensor) -> Tensor:
    """Return a floating-point tensor of no dimensions; its value is not checked."""
    if value.dim() != 0 or not value.is_floating_point():
        raise TypeError(
            f"{name} must be a number in [0, 1] or a floating-point tensor of no dimensions, "
            f"got a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
        )
    return value


def rate(value: object) -> Rate:
    if not isinstance(value, str) or value not in RATES:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"rate must be 'exact' or 'paper', got {value!r}")
    return value  # type: ignore[return-value]


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def generator(value: object, device: torch.device) -> torch.Generator | None:
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {value!r}")
    # the index of a device may be None, as in torch.device("cuda")
    if value is not None and (value.device.type != device.type or len({value.device.index, device.index} - {None}) > 1):
        raise ValueError(f"generator must be on the input's device, {device}, got one on {value.device}")
    return value


def key(value: object, generator: object) -> Tensor | int | None:
    """Return a key as a signed int or an int64 tensor of no dimensions; raise if a generator is given too."""
    if value is None:
        return None
    if generator is not None:
        raise ValueError("key and generator exclude each other: with a key nothing is drawn from a generator")
    wanted = "key must be an int of 64 bits or an int64 tensor of no dimensions"
    if isinstance(value, Tensor):
        if value.dim() != 0 or value.dtype != torch.int64:
            raise TypeError(f"{wanted}, got a tensor of shape {tuple(value.shape)} and dtype {value.dtype}")
        return value
    # torch.compile can treat an int as a variable, but `operator.index` would make it a constant
    is_plain = isinstance(value, int) and not isinstance(value, bool)
    if not (is_plain or _is_int(value)):
        raise TypeError(f"{wanted}, got {value!r} of type {type(value).__name__}")
    number: int = value if is_plain else operator.index(value)  # type: ignore[assignment, arg-type]
    if not -(1 << 63) <= number < 1 << 64:
        raise ValueError(f"{wanted}, got {value!r}")
    # no bit operations: torch.compile has them only for int64, if the key is a variable
    return number - (1 << 64) if number >= 1 << 63 else number


def feature_map(value: object, dims: int) -> Tensor:
    """Return a floating-point tensor of `dims` spatial dimensions after the channels, with or without a batch."""
    spatial = ("L", "H, W", "D, H, W")[dims - 1]
    wanted = f"input must be a floating-point tensor of shape (N, C, {spatial}) or (C, {spatial})"
    if not isinstance(value, Tensor):
        raise TypeError(f"{wanted}, got a {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"input must be of dtype float16, bfloat16, float32 or float64, got {value.dtype}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{wanted}, got {'a nested one' if value.is_nested else f'one of layout {value.layout}'}")
    if type(value).__name__ == "DTensor":
        raise TypeError(f"{wanted}, got a DTensor: call it on what its to_local() returns")
    if value.dim() not in (dims + 1, dims + 2):
        raise ValueError(f"{wanted}, got one of shape {tuple(value.shape)}")
    return value


def writable(value: Tensor) -> None:
    """Raise if writing into the tensor would be wrong, before anything is written."""
    what = f"(input of shape {tuple(value.shape)} and strides {value.stride()})"
    base = value if value._base is None else value._base
    if torch.is_grad_enabled() and (value.requires_grad or base.requires_grad):
        if value.requires_grad and base.is_leaf and base.requires_grad:
            kind = "leaf tensor" if base is value else "view of a leaf tensor"
            raise ValueError(f"inplace=True is not possible on a {kind} that requires grad {what}; use inplace=False")
        # a name other than DEFAULT marks a view through which autograd cannot follow a write
        made = "DEFAULT" if base is value else torch._C._autograd._get_creation_meta(value).name
        if made != "DEFAULT":
            raise ValueError(
                f"inplace=True is not possible on a view made {_VIEWS.get(made, made)} {what}; use inplace=False"
            )
    if value.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"inplace=True is not possible outside inference mode on a tensor made in it {what}; use inplace=False"
        )
    if _may_overlap(value):
        raise ValueError(
            f"inplace=True is not possible on a tensor whose elements may share memory {what}; "
            "use inplace=False or input.clone()"
        )


# PyTorch's names for ways to make views through which autograd cannot follow a write
_VIEWS = {
    "MULTI_OUTPUT_NODE": "with others at once, as by chunk(),",
    "IN_CUSTOM_FUNCTION": "by an autograd.Function",
    "NO_GRAD_MODE": "under no_grad",
    "INFERENCE_MODE": "in inference mode",
}


def _may_overlap(value: Tensor) -> bool:
    """Return True if two elements may share memory: some axis does not step over all axes of smaller strides."""
    reach = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach = stride * (size - 1) + reach
    return False
