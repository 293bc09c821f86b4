"""DropBlock for PyTorch that drops exactly what is asked.

PyTorch takes seconds to import, and `torch-dropblock --help` needs none of it. So the public names are imported at once
where PyTorch is imported already, and else together with the first of them that is used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends import backend_report as backend_report
    from .backends import use_backend as use_backend
    from .conversion import convert_dropblock as convert_dropblock
    from .functional import drop_block1d as drop_block1d
    from .functional import drop_block2d as drop_block2d
    from .functional import drop_block3d as drop_block3d
    from .geometry import expected_keep_rate as expected_keep_rate
    from .geometry import keep_rate_map as keep_rate_map
    from .geometry import seed_probability as seed_probability
    from .insertion import insert_dropblock as insert_dropblock
    from .insertion import remove_dropblock as remove_dropblock
    from .modules import DropBlock as DropBlock
    from .modules import DropBlock1d as DropBlock1d
    from .modules import DropBlock2d as DropBlock2d
    from .modules import DropBlock3d as DropBlock3d
    from .resnet import insert_dropblock_resnet as insert_dropblock_resnet
    from .schedule import KeepProbSchedule as KeepProbSchedule
    from .summary import dropblock_summary as dropblock_summary
    from .uncertainty import mc_dropblock as mc_dropblock
else:
    _PUBLIC = {
        "backends": ("backend_report", "use_backend"),
        "conversion": ("convert_dropblock",),
        "functional": ("drop_block1d", "drop_block2d", "drop_block3d"),
        "geometry": ("expected_keep_rate", "keep_rate_map", "seed_probability"),
        "insertion": ("insert_dropblock", "remove_dropblock"),
        "modules": ("DropBlock", "DropBlock1d", "DropBlock2d", "DropBlock3d"),
        "resnet": ("insert_dropblock_resnet",),
        "schedule": ("KeepProbSchedule",),
        "summary": ("dropblock_summary",),
        "uncertainty": ("mc_dropblock",),
    }
    __all__ = [name for names in _PUBLIC.values() for name in names]

    def _load() -> None:
        for home, names in _PUBLIC.items():
            module = import_module(f".{home}", __name__)
            globals().update({name: getattr(module, name) for name in names})

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _load()
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])

    if "torch" in sys.modules:  # a saved program needs the operators that are registered here
        _load()

__version__ = "0.1.0"
