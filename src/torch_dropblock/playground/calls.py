"""Calls that a page makes: every argument is checked before Gradio gets it.

Gradio opens, copies or fetches a file that an argument of any control names. `Calls` therefore rebuilds each call from
null, numbers, strings, true and false, so that no argument can name a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

SESSION = re.compile(r"[0-9a-z]{1,32}")  # the form of Gradio's pages
UPLOAD = re.compile(r"[0-9a-f]{32}")  # the form of `uploads`
LARGEST_NUMBER = 2**53  # JavaScript holds whole numbers up to it exactly


class Refused(Exception):  # noqa: N818 - an answer to a client, not a server error
    """Raised to refuse a request, with an HTTP status and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Call(NamedTuple):
    """A checked call: its session and its JSON."""

    session: str
    body: bytes


class Calls:
    """Check calls of the functions in a page's config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        components = {component["id"]: component for component in config["components"]}
        self._inputs = {
            function["id"]: [components[at] for at in function["inputs"]]
            for function in config["dependencies"]
            if function["backend_fn"]  # the others run in the browser
        }

    def checked(self, body: bytes) -> Call:
        """Return the call in a request's body, rebuilt from checked values.

        Raises:
            Refused: the body is not a valid call, or an argument does not fit its control.
        """
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError):
            sent = None
        if not isinstance(sent, dict):
            raise Refused(422, "the body must be a JSON object")
        session, function, values = (sent.get(name) for name in ("session_hash", "fn_index", "data"))
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise Refused(422, "session_hash must be 1 to 32 digits and small letters")
        if type(function) is not int or function not in self._inputs:
            raise Refused(422, "fn_index must be the number of a function of the page")
        inputs = self._inputs[function]
        if not isinstance(values, list) or len(values) != len(inputs):
            raise Refused(422, f"data must be a list of {len(inputs)} values")
        for component, value in zip(inputs, values, strict=True):
            _check(component, value)
        return Call(session, json.dumps({"session_hash": session, "fn_index": function, "data": values}).encode())


def _check(component: Mapping[str, Any], value: object) -> None:
    kind, properties = component["type"], component["props"]
    name = properties.get("label") or kind
    if kind not in _KINDS:
        raise Refused(422, f"{name} cannot be an argument: the server has no check for a {kind}")
    wanted, is_right = _KINDS[kind]
    if not is_right(value, properties):
        # the value itself may be long or name a file
        raise Refused(422, f"{name} must be {wanted}, got {_JSON_NAMES.get(type(value), 'another value')}")


def _is_choice(value: object, properties: Mapping[str, Any]) -> bool:
    return isinstance(value, str) and value in [choice for _, choice in properties["choices"]]


def _is_number(value: object, _: Mapping[str, Any]) -> bool:
    """Accept null too, from an empty box: the function reports which one is empty."""
    return value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER
    )


def _is_upload(value: object, _: Mapping[str, Any]) -> bool:
    return isinstance(value, str) and bool(UPLOAD.fullmatch(value))


_NUMBER = f"a number from -{LARGEST_NUMBER} to {LARGEST_NUMBER}"
# by Gradio's name of a control: the constraint on its value, in words and as a check
_KINDS: dict[str, tuple[str, Callable[[object, Mapping[str, Any]], bool]]] = {
    "state": ("null: the server keeps it", lambda value, _: value is None),
    "checkbox": ("true or false", lambda value, _: isinstance(value, bool)),
    "radio": ("one of its choices", _is_choice),
    "slider": (_NUMBER, _is_number),
    "number": (_NUMBER, _is_number),
    "textbox": ("the name of an upload", _is_upload),
}
_JSON_NAMES = {dict: "an object", list: "a list", type(None): "null"}
