"""`torch-dropblock playground`: a page to try the settings on a picture."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from .terminal import new_console

LARGEST_PORT = 65535


def playground(
    port: Annotated[
        int | None, typer.Option(metavar="P", help="Where to serve it.", show_default="7860, or the next free one")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Show the page in the browser.")] = True,
) -> None:
    """Try the settings on a picture, your own or the built-in one, in the browser.

    The page is served to this machine alone and asks for nothing outside of it. Ctrl-C ends it.

    [bold]Examples[/]

    [cyan]torch-dropblock playground[/]

    [cyan]torch-dropblock playground --port 8000 --no-open[/]
    """
    if port is not None and not 1 <= port <= LARGEST_PORT:
        raise ValueError(f"--port must be from 1 to {LARGEST_PORT}, got {port}")
    console = new_console()
    with _private_uploads():
        from .playground_server import serve

        serve(port, open_browser, lambda url: console.print(f"The playground is at {url} (Ctrl-C ends it)"))


@contextmanager
def _private_uploads() -> Iterator[None]:
    """Let Gradio put uploads where no other user of the machine can read, and leave none of them behind.

    To be called before Gradio is imported, which looks up then where they go.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="torch-dropblock-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before
