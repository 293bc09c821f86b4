"""The checkpoint of an unfinished run: written as a whole or not at all, and checked before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from .records import save
from .training import Run

# what Lightning restores from it
NEEDED = {"epoch", "global_step", "loops", "optimizer_states", "lr_schedulers", "pytorch-lightning_version"}


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way goes through the folder for temporary files, from where a move to another disk is no one step."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        save(checkpoint, Path(path))


def check(file: Path, run: Run) -> None:
    """A checkpoint is of this network, and whole; Lightning and PyTorch say so in a dozen ways."""
    try:
        saved = torch.load(file, weights_only=True, mmap=True)
        shapes = {name: value.shape for name, value in saved["state_dict"].items()}
        whole = (
            saved["measured"].keys() == run.measured.keys()
            and saved.keys() >= NEEDED
            and shapes == {name: value.shape for name, value in run.state_dict().items()}
        )
    except OSError as error:
        if error.filename:
            raise
        whole = False  # PyTorch's own, of a file cut short
    except Exception:  # noqa: BLE001 - what damaged files raise may be anything
        whole = False
    if not whole:
        raise ValueError(f"{file} is damaged, or of other images; without it the run starts again")
