"""`torch-dropblock playground`: a page to try the settings on a picture."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .terminal import new_console

LARGEST_PORT = 65535
PROXIES = {"ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY"}
CERTIFICATES = {"SSL_CERT_FILE", "SSL_CERT_DIR"}


def playground(
    port: Annotated[
        int | None,
        typer.Option(metavar="P", help="Port to serve the page on.", show_default="7860, or the next free one"),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Show the page in the browser.")] = True,
) -> None:
    """Try the settings on a picture, your own or the built-in one, in the browser.

    Only this machine can open the page, which loads nothing from elsewhere. Ctrl-C ends the server.

    [bold]Examples[/]

    [cyan]torch-dropblock playground[/]

    [cyan]torch-dropblock playground --port 8000 --no-open[/]
    """
    if port is not None and not 1 <= port <= LARGEST_PORT:
        raise ValueError(f"--port must be from 1 to {LARGEST_PORT}, got {port}")
    console = new_console()
    with _private_folder() as folder:
        with _no_proxies():
            from ..playground.server import serve
        serve(folder, port, open_browser, lambda url: console.print(f"The playground is at {url} (Ctrl-C ends it)"))


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Make a folder for uploads and for Gradio's files that no other user of the machine can read."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="torch-dropblock-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


@contextmanager
def _no_proxies() -> Iterator[None]:
    """Hide proxies and certificates while Gradio is imported: it reads them and may fail, and it needs no network."""
    hidden = {name: value for name, value in os.environ.items() if name.upper() in PROXIES | CERTIFICATES}
    for name in hidden:
        del os.environ[name]
    os.environ["NO_PROXY"] = "*"  # outside Linux, the system's own proxy settings would apply
    try:
        yield
    finally:
        del os.environ["NO_PROXY"]
        os.environ.update(hidden)
