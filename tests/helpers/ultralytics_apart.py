"""Import Ultralytics without a trace in the process that imports it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image


@contextmanager
def ultralytics_apart(settings: Path) -> Iterator[None]:
    """Keep Ultralytics' settings in a folder, and undo afterwards what it replaces in Pillow and PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(settings))
        patch.setenv("YOLO_AUTOINSTALL", "false")
        patch.setenv("YOLO_OFFLINE", "true")
        for module, name in ((Image, "open"), (torch, "save")):
            patch.setattr(module, name, getattr(module, name))
        yield
