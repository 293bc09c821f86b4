"""Requests to an ASGI application, without a server."""

import asyncio


def ask(app, method, path, body=b"", port=7860, query=b"", **headers):
    """Send a request; return the status, the headers and the body of the response."""
    return asyncio.run(ask_soon(app, method, path, body, port, query, **headers))


async def ask_soon(app, method, path, body=b"", port=7860, query=b"", **headers):
    headers = {"host": f"127.0.0.1:{port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "server": ("127.0.0.1", port),
        "scheme": "http",
    }
    chunks = [body] if isinstance(body, bytes) else list(body)
    sent = []

    async def receive():
        await asyncio.sleep(0)
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    start, *parts = sent
    got = [(name.decode(), value.decode()) for name, value in start.get("headers", [])]
    return start["status"], got, b"".join(part.get("body", b"") for part in parts)


def form(content, name="cat.png", field="files"):
    """Return the body and the content type of a form with one file."""
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
    return f"--x\r\n{disposition}\r\n\r\n".encode() + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
