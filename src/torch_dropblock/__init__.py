"""DropBlock for PyTorch that drops exactly what is asked.

PyTorch takes seconds to import, and `torch-dropblock --help` needs none of it. So the public names are imported at once
where PyTorch is imported already, and else together with the first of them that is used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.choice import backend_report as backend_report
    from .backends.choice import use_backend as use_backend
    from .core.geometry import expected_keep_rate as expected_keep_rate
    from .core.geometry import keep_rate_map as keep_rate_map
    from .core.geometry import seed_probability as seed_probability
    from .layer.functional import drop_block1d as drop_block1d
    from .layer.functional import drop_block2d as drop_block2d
    from .layer.functional import drop_block3d as drop_block3d
    from .layer.functional import drop_block_mask as drop_block_mask
    from .layer.modules import DropBlock as DropBlock
    from .layer.modules import DropBlock1d as DropBlock1d
    from .layer.modules import DropBlock2d as DropBlock2d
    from .layer.modules import DropBlock3d as DropBlock3d
    from .networks.conversion import convert_dropblock as convert_dropblock
    from .networks.insertion import dropblock_layers as dropblock_layers
    from .networks.insertion import insert_dropblock as insert_dropblock
    from .networks.insertion import remove_dropblock as remove_dropblock
    from .networks.monte_carlo import mc_dropblock as mc_dropblock
    from .networks.prediction import mc_predict as mc_predict
    from .networks.resnet import insert_dropblock_resnet as insert_dropblock_resnet
    from .networks.schedule import KeepProbSchedule as KeepProbSchedule
    from .networks.stages import insert_dropblock_stages as insert_dropblock_stages
    from .networks.summary import dropblock_summary as dropblock_summary
else:
    _PUBLIC = {
        "backends.choice": ("backend_report", "use_backend"),
        "core.geometry": ("expected_keep_rate", "keep_rate_map", "seed_probability"),
        "layer.functional": ("drop_block1d", "drop_block2d", "drop_block3d", "drop_block_mask"),
        "layer.modules": ("DropBlock", "DropBlock1d", "DropBlock2d", "DropBlock3d"),
        "networks.conversion": ("convert_dropblock",),
        "networks.insertion": ("dropblock_layers", "insert_dropblock", "remove_dropblock"),
        "networks.monte_carlo": ("mc_dropblock",),
        "networks.prediction": ("mc_predict",),
        "networks.resnet": ("insert_dropblock_resnet",),
        "networks.schedule": ("KeepProbSchedule",),
        "networks.stages": ("insert_dropblock_stages",),
        "networks.summary": ("dropblock_summary",),
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

__version__ = "0.2.0"
