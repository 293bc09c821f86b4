"""The playground's server, which only this machine can reach and which contacts no other."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

from ..pictures import figures
from . import page
from .app import blocks
from .calls import Calls
from .gate import Gate
from .sessions import MOST_SESSIONS, Sessions
from .uploads import LARGEST_FILE, Uploads

HOST = "127.0.0.1"
FIRST_PORT = 7860  # Gradio's
PORTS_TRIED = 100
MOST_CONNECTIONS = 8 * MOST_SESSIONS  # a browser opens six


def serve(folder: Path, port: int | None, open_browser: bool, ready: Callable[[str], None]) -> None:
    """Serve the playground until it is interrupted.

    Args:
        folder: folder for uploads while they are read; nobody else may write there.
        port: port to listen on; None takes the first free one from `FIRST_PORT` on.
        open_browser: show the page in the user's browser.
        ready: called with the address once the server accepts requests.

    Raises:
        ValueError: the port cannot be used.
    """
    with _listening(port) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}"

        def started() -> None:
            ready(url)
            if open_browser:  # in a thread, since a browser in the terminal blocks until it is closed
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        # timeout_graceful_shutdown: an open page keeps its connection, which would delay the end
        config = uvicorn.Config(
            create_app(folder),
            log_level="warning",
            timeout_graceful_shutdown=1,
            limit_concurrency=MOST_CONNECTIONS,
            ws="none",
            proxy_headers=False,
            server_header=False,
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # end cleanly on SIGTERM too
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after a clean shutdown
            Server(config, started).run([listener])


class Server(uvicorn.Server):
    """A server that calls `started` once it has started."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # open pages keep a request running, and uvicorn logs a traceback for each that it ends
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def create_app(folder: Path) -> Gate:
    """Build the page behind its gate.

    Args:
        folder: see `serve`.
    """
    uploads = Uploads(folder)
    content = blocks(uploads.take)
    content.state_session_capacity = MOST_SESSIONS
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),  # no documentation pages
        content,
        "/",
        theme=_theme(),
        css=page.STYLE,
        footer_links=[],
        run_history=False,
        max_file_size=LARGEST_FILE,  # the page reports it before it sends a file
        enable_monitoring=False,
        show_error=False,
        app_kwargs={"openapi_url": None},
        # explicit, or environment variables would set them
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        root_path="",
    )

    def forget(session: str) -> None:
        content.state_holder.session_data.pop(session, None)
        content.state_holder.time_last_used.pop(session, None)

    return Gate(app, Calls(content.config), uploads, Sessions(forget))


def _theme() -> gr.themes.Base:
    """Return a theme with readable colours of `figures` and system fonts; Gradio's themes download fonts."""
    accent = gr.themes.Color(
        "#fdf3f0", "#fbe3dc", "#f5c4b6", "#ec9c87", "#dd7158", figures.ACCENT, "#b03d27", "#933321", "#74291b",
        "#5a2118", "#33120d",
    )  # fmt: skip
    theme = gr.themes.Base(
        primary_hue=accent,
        secondary_hue=accent,
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace"],
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
    )


@contextmanager
def _listening(port: int | None) -> Iterator[socket.socket]:
    tried = range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if port is None else (port,)
    reason: str | None = None
    # asyncio sends without a delay of 40 ms only if the protocol is named
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        if os.name == "posix":  # on Windows it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for number in tried:
            try:
                listener.bind((HOST, number))
            except OSError as error:  # noqa: PERF203 - taken ports are rare
                reason = error.strerror
            else:
                listener.listen()
                yield listener
                return
    which = f"port {port}" if port is not None else f"the {PORTS_TRIED} ports from {FIRST_PORT} on"
    raise ValueError(f"{which} cannot be used on {HOST}: {reason}; choose another with --port")
