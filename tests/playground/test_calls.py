"""What is let through to Gradio; the same on a running server is in test_playground_server.py."""

import json

import pytest

from torch_dropblock.playground.calls import LARGEST_NUMBER, Calls, Refused

CONTROLS = {
    "state": {},
    "radio": {"label": "Method", "choices": [["one", "one"], ["two", "two"]]},
    "checkbox": {"label": "Square"},
    "slider": {"label": "Size"},
    "number": {"label": "Seed"},
    "textbox": {},
    "video": {"label": "Film"},  # new, and without a check
}
COMPONENTS = [{"id": at, "type": kind, "props": props} for at, (kind, props) in enumerate(CONTROLS.items())]
FUNCTIONS = [{"id": at, "inputs": [at], "backend_fn": True} for at in range(len(COMPONENTS))]
FUNCTIONS.append({"id": 99, "inputs": [], "backend_fn": False})
CALLS = Calls({"components": COMPONENTS, "dependencies": FUNCTIONS})
UPLOAD = "0123456789abcdef" * 2
FILE = {"path": "/etc/passwd", "orig_name": "a", "meta": {"_type": "gradio.FileData"}}


def call(kind, value, **more):
    sent = {"data": [value], "fn_index": list(CONTROLS).index(kind), "session_hash": "a1", **more}
    return CALLS.checked(json.dumps(sent).encode())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("state", None),
        ("radio", "two"),
        ("checkbox", False),
        *((kind, value) for kind in ("slider", "number") for value in (0, -1.5, LARGEST_NUMBER, None)),
        ("textbox", UPLOAD),
    ],
)
def test_a_value_of_its_kind_is_passed_on(kind, value):
    session, body = call(kind, value, event_data=FILE, trigger_id=1, event_id="x", batched=True)
    assert session == "a1"
    assert json.loads(body) == {"data": [value], "fn_index": list(CONTROLS).index(kind), "session_hash": "a1"}


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("state", FILE, "state must be null: the server keeps it, got an object"),
        ("state", 0, "state must be null"),
        ("radio", "three", "Method must be one of its choices, got another value"),
        ("radio", ["one"], "Method must be one of its choices, got a list"),
        ("checkbox", 1, "Square must be true or false"),
        ("checkbox", None, "Square must be true or false, got null"),
        ("slider", True, "Size must be a number from -9007199254740992 to 9007199254740992"),
        ("number", "1", "Seed must be a number"),
        ("number", 10**400, "Seed must be a number"),
        ("number", -LARGEST_NUMBER - 1, "Seed must be a number"),
        ("number", float("nan"), "Seed must be a number"),
        ("number", float("inf"), "Seed must be a number"),
        ("number", [1], "Seed must be a number"),
        ("textbox", "/etc/passwd", "textbox must be the name of an upload"),
        ("textbox", UPLOAD + "\n", "textbox must be the name of an upload"),
        ("textbox", FILE, "textbox must be the name of an upload, got an object"),
        ("video", None, "Film cannot be an argument: the server has no check for a video"),
    ],
)
def test_any_other_value_is_refused(kind, value, said):
    with pytest.raises(Refused) as refused:
        call(kind, value)
    assert refused.value.status == 422
    assert str(refused.value).startswith(said)
    assert "passwd" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"session_hash": None}, "session_hash"),
        ({"session_hash": "../a"}, "session_hash"),
        ({"session_hash": "a" * 33}, "session_hash"),
        ({"session_hash": FILE}, "session_hash"),
        ({"fn_index": 99}, "fn_index"),  # one that runs in the browser
        ({"fn_index": True}, "fn_index"),
        ({"fn_index": [0]}, "fn_index"),
        ({"fn_index": -1}, "fn_index"),
        ({"data": []}, "data must be a list of 1 values"),
        ({"data": None}, "data"),
        ({"data": {"0": None}}, "data"),
    ],
)
def test_what_is_no_call_is_refused(change, said):
    with pytest.raises(Refused, match=said):
        call("state", None, **change)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b"{", b"[" * 9000, b'{"data": ' + b"1" * 5000 + b"}"])
def test_what_is_no_json_object_is_refused(body):
    with pytest.raises(Refused, match="the body must be a JSON object"):
        CALLS.checked(body)
