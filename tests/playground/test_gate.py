"""The gate before an application that tells what reached it; before Gradio it is in test_playground_server.py."""

import asyncio
import json

import pytest

from helpers.asgi import ask, ask_soon, form
from torch_dropblock.playground.calls import Calls
from torch_dropblock.playground.gate import HEADERS, LARGEST_CALL, Gate
from torch_dropblock.playground.sessions import Sessions
from torch_dropblock.playground.uploads import LARGEST_FORM, Uploads

CONFIG = {
    "components": [{"id": 1, "type": "number", "props": {"label": "Seed"}}],
    "dependencies": [{"id": 0, "inputs": [1], "backend_fn": True}],
}
CALL = "/gradio_api/run/predict"
BODY = json.dumps({"data": [3], "fn_index": 0, "session_hash": "a", "event_data": {"path": "x"}}).encode()


class Inner:
    """Stands for Gradio."""

    def __init__(self):
        self.status = 200
        self.reached = []
        self.running = self.most = 0

    async def __call__(self, scope, receive, send):
        self.running += 1
        self.most = max(self.most, self.running)
        body = (await receive()).get("body") if scope["type"] == "http" else b""
        await asyncio.sleep(0)
        self.reached.append((scope["type"], scope.get("path"), scope.get("query_string"), scope.get("headers"), body))
        headers = [(b"x-file", b"/home/me/secret")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"/home/me/secret"})
        self.running -= 1


@pytest.fixture
def inner():
    return Inner()


@pytest.fixture
def gate(inner, tmp_path):
    yield Gate(inner, Calls(CONFIG), Uploads(tmp_path), Sessions(lambda session: None))
    assert list(tmp_path.iterdir()) == []


READ = ["/", "/theme.css", "/favicon.ico", "/assets/index-A_1.js", "/static/js/a/b.min.js", "/gradio_api/heartbeat/0a"]


@pytest.mark.parametrize("path", READ)
def test_what_the_page_reads_is_served(gate, inner, path):
    status, headers, body = ask(gate, "GET", path)
    assert (status, body) == (200, b"/home/me/secret")
    assert headers[1:] == list(HEADERS.items())
    assert inner.reached[0][1] == path


@pytest.mark.parametrize(
    "path",
    [
        *READ, CALL, "/gradio_api/upload", "", "//", "/config", "/docs", "/openapi.json", "/assets/", "/assets/..",
        "/assets/../../x", "/assets/.env", "/assets//x", "/assets/x/", "/assets/a b", "/assets/ä", "/theme.css/",
        "/static/a\n", "/gradio_api/heartbeat/", "/gradio_api/heartbeat/A", "/gradio_api/heartbeat/a/b",
        "/gradio_api/file=/etc/passwd", "/gradio_api/run/other", "/gradio_api/run/predict/", "/gradio_api/upload/",
    ],
)  # fmt: skip
def test_nothing_else_is(gate, inner, path):
    served = {"GET", "HEAD"} if path in READ else {"POST"} if path in (CALL, "/gradio_api/upload") else set()
    if "heartbeat" in path:
        served -= {"HEAD"}
    for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"} - served:
        assert ask(gate, method, path)[0] == 404, method
    assert inner.reached == []


def test_gradio_gets_no_query_and_few_headers(gate, inner):
    more = {"cookie": "a=b", "x_forwarded_host": "evil", "x_gradio_server": "evil", "range": "bytes=0-1", "accept": "*"}
    ask(gate, "GET", "/", query=b"deep_link=../../x", origin="http://127.0.0.1:7860", **more)
    ((_, _, query, headers, _),) = inner.reached
    assert query == b""
    assert headers == [(b"host", b"127.0.0.1:7860"), (b"accept", b"*")]


def test_a_call_is_made_anew(gate, inner):
    assert ask(gate, "POST", CALL, BODY, content_type="application/json", cookie="a")[0] == 200
    ((_, path, _, headers, body),) = inner.reached
    assert path == CALL
    assert json.loads(body) == {"data": [3], "fn_index": 0, "session_hash": "a"}
    assert dict(headers) == {
        b"host": b"127.0.0.1:7860",
        b"content-type": b"application/json",
        b"content-length": str(len(body)).encode(),
    }


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (BODY, "text/plain", 415),
        (BODY, "", 415),
        (BODY, "application/x-www-form-urlencoded", 415),
        (BODY.replace(b"3", b'{"path": "x"}'), "application/json", 422),
        ([b" " * LARGEST_CALL, BODY], "application/json", 413),
    ],
)
def test_a_call_that_is_refused(gate, inner, body, kind, status):
    got, _, said = ask(gate, "POST", CALL, body, content_type=kind)
    assert (got, list(json.loads(said))) == (status, ["error"])
    assert inner.reached == []


def test_calls_are_served_one_at_a_time_and_in_order(gate, inner):
    bodies = [BODY.replace(b"3", str(number).encode()) for number in range(20)]

    async def storm():
        await asyncio.gather(*(ask_soon(gate, "POST", CALL, body, content_type="application/json") for body in bodies))

    asyncio.run(storm())
    assert inner.most == 1
    assert [json.loads(body)["data"] for *_, body in inner.reached] == [[number] for number in range(20)]


def test_a_client_that_does_not_take_its_answer_holds_up_nobody(gate):
    async def stall():
        async def never(message):
            await asyncio.Event().wait()

        async def receive():
            return {"type": "http.request", "body": BODY}

        headers = [(b"host", b"localhost:1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CALL, "headers": headers, "server": ("127.0.0.1", 1)}
        waiting = asyncio.create_task(gate(scope, receive, never))
        answer = ask_soon(gate, "POST", CALL, BODY, content_type="application/json")
        status, *_ = await asyncio.wait_for(answer, 20)
        waiting.cancel()
        return status

    assert asyncio.run(stall()) == 200


def test_what_gradio_says_of_an_error_is_not_passed_on(gate, inner):
    inner.status = 404
    for answer in (ask(gate, "GET", "/"), ask(gate, "POST", CALL, BODY, content_type="application/json")):
        status, headers, body = answer
        assert (status, json.loads(body)) == (404, {"error": "this cannot be served"})
        assert "secret" not in str(headers)


def test_an_upload_does_not_reach_gradio(gate, inner):
    body, kind = form(b"no picture")
    status, _, said = ask(gate, "POST", "/gradio_api/upload", body, content_type=kind)
    assert (status, len(json.loads(said)[0])) == (200, 32)
    status, _, said = ask(gate, "POST", "/gradio_api/upload", too_large(), content_type=kind)
    assert (status, json.loads(said)) == (413, {"error": "the request must be at most 100,010,000 bytes"})
    assert inner.reached == []


def too_large():
    million = b"x" * 1_000_000
    yield form(b"")[0][:-9]
    for _ in range(LARGEST_FORM // len(million) + 1):
        yield million


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860"])
def test_this_machines_own_names(gate, host):
    assert ask(gate, "GET", "/", host=host, origin=f"http://{host}")[0] == 200
    assert ask(gate, "GET", "/", host="localhost", port=80)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:7860", "127.0.0.1", "localhost:80", "127.0.0.1:7860.evil.example",
     "0.0.0.0:7860", "127.0.0.1:7860@evil.example", "localhost.:7860", "[::1]:7860"],
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", CALL), ("GET", "/gradio_api/heartbeat/a")])
def test_another_host(gate, inner, host, method, path):
    status, headers, _ = ask(gate, method, path, host=host)
    assert status == 421
    assert "access-control" not in str(headers)
    assert inner.reached == []


@pytest.mark.parametrize(
    "source",
    [
        *({"origin": origin} for origin in ("http://evil.example", "null", "", "http://127.0.0.1:7861", "http://127.0.0.1",
                                            "https://127.0.0.1:7860", "http://localhost:7860")),
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("POST", CALL), ("POST", "/gradio_api/upload"), ("GET", "/gradio_api/heartbeat/a")],
)
def test_another_site(gate, inner, source, method, path):
    status, headers, _ = ask(gate, method, path, **source)
    assert status == 403
    assert "access-control" not in str(headers)
    assert inner.reached == []


def test_a_link_on_another_site_leads_to_the_page(gate):
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert ask(gate, "GET", "/", **link)[0] == 200
    assert ask(gate, "GET", "/theme.css", **link)[0] == 403


def test_no_websockets_but_the_start_and_the_end_of_the_server(gate, inner):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(gate({"type": "websocket", "path": "/"}, None, send))
    assert sent == [{"type": "websocket.close"}]
    assert inner.reached == []
    asyncio.run(gate({"type": "lifespan"}, None, send))
    assert [kind for kind, *_ in inner.reached] == ["lifespan"]


def test_a_client_that_leaves_is_no_error(gate, inner):
    async def gone():
        return {"type": "http.disconnect"}

    headers = [(b"host", b"localhost:1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CALL, "headers": headers, "server": ("127.0.0.1", 1)}
    asyncio.run(gate(scope, gone, None))
    assert inner.reached == []
