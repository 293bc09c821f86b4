"""Help with wrong calls: hints in their errors, and warnings that point to the line of the user's own code."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

# packages whose frames lie between a warning and the line that a user can change
_BETWEEN = {
    *("torch_dropblock", "contextlib", "torch", "lightning", "lightning_fabric", "pytorch_lightning"),
    *("transformers", "accelerate", "ultralytics"),
}


def hinted(hint: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add a hint to the error of a call whose arguments do not fit the signature.

    The signature does not change, for `help()`, editors and type checkers. Errors from inside the function do not
    change either.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        owner = function.__qualname__.rpartition(".")[0]

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except TypeError as error:
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise  # the function itself ran
                message = str(error)
                if owner and args:  # Python names the class that defines the method, not the class that was called
                    message = message.replace(owner, type(args[0]).__qualname__, 1)
                raise TypeError(f"{message}; {hint}") from None

        # with these attributes, torch.jit.script compiles the original function and names it in its errors
        vars(call).update(__script_if_tracing_wrapper=True, __original_fn=function)
        return call

    return decorate


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line of the user's own code."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


class Layers(dict[str, nn.Module]):
    """Layers that a function put into a model, by name; if used as the model, they raise an error that explains."""

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(f"'dict' object is not callable; {_NOT_THE_MODEL}")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"'dict' object has no attribute {name!r}; {_NOT_THE_MODEL}")


_NOT_THE_MODEL = (
    "the function changed the model in place and returned its layers by name: "
    "write `layers = ...` where `model = ...` was written, and use the model"
)
