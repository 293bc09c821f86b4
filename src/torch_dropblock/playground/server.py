"""The playground's server: for this machine alone, with no call to any other."""

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
        folder: where uploads lie while they are read; nobody else may write there.
        port: where to listen; None takes the first free one from `FIRST_PORT` on.
        open_browser: show the page in the user's browser.
        ready: called with the address once the page can be asked for.

    Raises:
        ValueError: the port cannot be had.
    """
    with _listening(port) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}"

        def started() -> None:
            ready(url)
            if open_browser:  # in a thread, since a browser in the terminal keeps it until it is left
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        # a page that is still open keeps its connection, which would hold up the end
        config = uvicorn.Config(
            create_app(folder),
            log_level="warning",
            timeout_graceful_shutdown=1,
            limit_concurrency=MOST_CONNECTIONS,
            ws="none",
            proxy_headers=False,
            server_header=False,
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that being terminated ends well too
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal once more after it has ended well
            Server(config, started).run([listener])


class Server(uvicorn.Server):
    """One that says when it has started."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # pages that are still open keep a request running, and uvicorn tells of each that it ends with a traceback
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def create_app(folder: Path) -> Gate:
    """The page behind its gate.

    Args:
        folder: as for `serve`.
    """
    uploads = Uploads(folder)
    content = blocks(uploads.take)
    content.state_session_capacity = MOST_SESSIONS
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),  # and so no pages of documentation
        content,
        "/",
        theme=_theme(),
        css=page.STYLE,
        footer_links=[],
        run_history=False,
        max_file_size=LARGEST_FILE,  # for the page, which says so before it sends a file
        enable_monitoring=False,
        show_error=False,
        app_kwargs={"openapi_url": None},
        # given, since environment variables would decide otherwise
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
    """The colours of `figures`, dark enough to be read, and the system's fonts: Gradio's own themes fetch theirs."""
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
    # with the protocol named, asyncio sends each part of an answer at once, not 40 ms later
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        if os.name == "posix":  # elsewhere it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for number in tried:
            try:
                listener.bind((HOST, number))
            except OSError as error:  # noqa: PERF203 - a port that is taken is the exception
                reason = error.strerror
            else:
                listener.listen()
                yield listener
                return
    which = f"port {port}" if port is not None else f"the {PORTS_TRIED} ports from {FIRST_PORT} on"
    raise ValueError(f"{which} cannot be had on {HOST}: {reason}; choose another with --port")
