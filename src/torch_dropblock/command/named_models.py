"""Networks by name: `torchvision:resnet50`, `timm:resnet50`, or a function of your own, `package.module:function`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

FORMS = "torchvision:NAME, timm:NAME, package.module:FUNCTION or file.py:FUNCTION"


def build(name: str) -> nn.Module:
    """Build the network of that name with random weights; nothing is downloaded.

    Raises:
        ValueError: there is no such network, or the function does not return one.
    """
    from torch import nn

    source, _, what = name.rpartition(":")
    if not source or not what:
        raise ValueError(f"MODEL must be {FORMS}, got {name!r}{_meant(what)}")
    if source in _LIBRARIES:
        return _LIBRARIES[source](what)
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise ValueError(f"there is no file {source}")
        sys.path.insert(0, str(Path(source).parent))  # as Python does for a script
        members = runpy.run_path(source)
    else:
        members = vars(_imported(source))
    if not callable(members.get(what)):
        functions = [key for key, value in members.items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{source} has no function {what!r}{_close_to(what, functions)}")  # noqa: TRY004
    model = members[what]()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} must return a torch.nn.Module, it returned a {type(model).__name__}")  # noqa: TRY004
    return model


def _from_torchvision(name: str) -> nn.Module:
    models: Any = _imported("torchvision.models")
    if name not in models.list_models():
        raise ValueError(f"torchvision has no model {name!r}{_close_to(name, models.list_models())}")
    builder = models.get_model_builder(name)
    options = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
    model: nn.Module = builder(**options)
    return model


def _from_timm(name: str) -> nn.Module:
    timm: Any = _imported("timm")
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{_close_to(name, timm.list_models())}")
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _meant(name: str) -> str:
    """Return a question that names the libraries that have this model, or the closest names."""
    known = {library: list_models() for library, list_models in _NAMES.items() if find_spec(library)}
    exact = [f"{library}:{name}" for library, names in known.items() if name in names]
    close = [
        f"{library}:{near}" for library, names in known.items() for near in difflib.get_close_matches(name, names, 1)
    ]
    return f"; did you mean {' or '.join(exact or close)}?" if exact or close else ""


_NAMES: dict[str, Callable[[], list[str]]] = {
    "torchvision": lambda: _imported("torchvision.models").list_models(),
    "timm": lambda: _imported("timm").list_models(),
}
_LIBRARIES = {"torchvision": _from_torchvision, "timm": _from_timm}


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        hint = f"; run: pip install {error.name}" if error.name in _LIBRARIES else ", or is not on Python's path"
        raise ValueError(f"{error.name} is not installed{hint}") from None


def _close_to(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f"; close to it: {', '.join(close)}" if close else ""
