"""Checkpoints of unfinished runs and weights of finished ones: written atomically, and checked before use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from .records import save
from .training import Run

# keys that Lightning restores
NEEDED = {"epoch", "global_step", "loops", "optimizer_states", "lr_schedulers", "pytorch-lightning_version"}


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically.

    Lightning writes to the temporary folder first; a move from there to another disk is not atomic.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        save(checkpoint, Path(path))


def check(file: Path, run: Run) -> None:
    """Raise one ValueError unless the checkpoint is complete and of this network.

    Lightning and PyTorch report such files with many different errors.
    """
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
        whole = False  # PyTorch raises it without a filename for a truncated file
    except Exception:  # noqa: BLE001 - damaged files may raise anything
        whole = False
    if not whole:
        raise ValueError(f"{file} is damaged, or of other images; delete it to train the run from the start")


def load_weights(network: nn.Module, file: Path) -> None:
    """Load saved weights; raise ValueError if the file is damaged or of another network."""
    try:
        network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    except Exception as error:
        raise ValueError(f"{file} is damaged, or of another network; delete it to leave the run unmeasured") from error
