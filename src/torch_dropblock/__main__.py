"""The entry point of the command `torch-dropblock`, and of `python -m torch_dropblock`."""

from __future__ import annotations

import io
import os
import sys

# what each extra brings, by the names they are imported under
EXTRAS = {
    "cli": {"typer", "rich", "matplotlib", "PIL", "numpy"},
    "train": {"lightning", "torchmetrics", "torchvision", "sklearn", "scipy", "filelock"},
    "playground": {"gradio", "fastapi", "uvicorn"},
}


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # γ and × are not in every code page; a question mark for them is better than a traceback
            stream.reconfigure(errors="replace")
    # no command opens a window, and notebooks set a backend that may not be installed here
    os.environ["MPLBACKEND"] = "agg"
    try:
        from .command.app import app

        app()
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
        if extra is None:
            raise
        message = f'error: {name} is not installed; run: pip install "torch-dropblock[{extra}]"'
        print(message, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
