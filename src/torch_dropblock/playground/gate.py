"""The filter in front of Gradio.

Gradio serves some eighty routes, which include files of this machine and addresses of others. The page needs seven;
`Gate` refuses the rest. It rebuilds each request: no query, few headers, and arguments that `calls` has checked.
"""

from __future__ import annotations

import asyncio
import re

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .calls import SESSION, Calls, Refused
from .sessions import Sessions
from .uploads import LARGEST_FORM, Uploads

HOSTS = ("127.0.0.1", "localhost")
READ = re.compile(r"/|/theme\.css|/favicon\.ico|/(assets|static)(/[\w-][\w.-]*)+", re.ASCII)
HEARTBEAT = re.compile(rf"/gradio_api/heartbeat/({SESSION.pattern})")
UPLOAD = "/gradio_api/upload"
CALL = "/gradio_api/run/predict"
LARGEST_CALL = 10_000  # bytes
PASSED_ON = {b"host", b"accept", b"accept-encoding", b"user-agent"}
# the page loads and sends nothing elsewhere, and no other site can embed it
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; "
    "form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """An ASGI application that passes only safe requests on to Gradio's."""

    def __init__(self, app: ASGIApp, calls: Calls, uploads: Uploads, sessions: Sessions) -> None:
        self._app = app
        self._calls = calls
        self._uploads = uploads
        self._sessions = sessions
        self._one_at_a_time = asyncio.Lock()  # in order, so that no older picture replaces a newer one

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await self._answer(scope, receive, _with_headers(send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            _check_source(Request(scope))
            await self._serve(scope, receive, send)
        except Refused as refused:
            await JSONResponse({"error": str(refused)}, refused.status)(scope, receive, send)
        except ClientDisconnect:
            pass

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["method"] in ("GET", "HEAD") and READ.fullmatch(path):
            await self._app(_anew(scope), receive, _without_reasons(send))
        elif scope["method"] == "GET" and (heartbeat := HEARTBEAT.fullmatch(path)):
            with self._sessions.stream(heartbeat[1]):
                await self._app(_anew(scope), receive, _without_reasons(send))
        elif scope["method"] == "POST" and path == UPLOAD:
            token = await self._uploads.receive(Request(scope, _bounded(receive, LARGEST_FORM)))
            await JSONResponse([token])(scope, receive, send)
        elif scope["method"] == "POST" and path == CALL:
            await self._call(Request(scope, _bounded(receive, LARGEST_CALL)), send)
        else:
            raise Refused(404, "there is nothing at this address")

    async def _call(self, request: Request, send: Send) -> None:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused(415, "a call must be JSON (application/json)")
        call = self._calls.checked(await request.body())
        self._sessions.enter(call.session)
        answer: list[Message] = []

        async def body() -> Message:
            return {"type": "http.request", "body": call.body}

        async def keep(message: Message) -> None:
            answer.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(call.body)).encode())]
        async with self._one_at_a_time:
            await self._app(_anew(request.scope, headers), body, _without_reasons(keep))
        for message in answer:  # outside the lock, since a client may read slowly
            await send(message)


def _check_source(request: Request) -> None:
    """Refuse requests from pages of other sites, and from host names that resolve here (DNS rebinding)."""
    scope, headers = request.scope, request.headers
    port = scope["server"][1]
    host = headers.get("host", "").lower()
    if host not in {f"{name}:{port}" for name in HOSTS} | (set(HOSTS) if port == 80 else set()):
        raise Refused(421, f"Host must be {HOSTS[0]}:{port} or {HOSTS[1]}:{port}")
    if any(origin.lower() != f"http://{host}" for origin in headers.getlist("origin")):
        raise Refused(403, "a page of another site cannot use the playground")
    followed_link = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not followed_link:
        raise Refused(403, "a page of another site cannot use the playground")


def _anew(scope: Scope, headers: list[tuple[bytes, bytes]] | None = None) -> Scope:
    kept = [(name, value) for name, value in scope["headers"] if name in PASSED_ON]
    return {**scope, "query_string": b"", "raw_path": scope["path"].encode(), "headers": kept + (headers or [])}


def _bounded(receive: Receive, most: int) -> Receive:
    left = most

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise Refused(413, f"the request must be at most {most:,} bytes")
        return message

    return bounded


def _with_headers(send: Send) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return send_more


def _without_reasons(send: Send) -> Send:
    """Pass answers on, but only the status of an error, since Gradio's reasons name files."""
    is_error = False

    async def send_less(message: Message) -> None:
        nonlocal is_error
        if message["type"] == "http.response.start":
            is_error = message["status"] >= 400
            if is_error:
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": message["status"], "headers": headers})
                await send({"type": "http.response.body", "body": b'{"error": "this cannot be served"}'})
        if not is_error:
            await send(message)

    return send_less
