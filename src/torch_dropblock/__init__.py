"""DropBlock for PyTorch that drops exactly what is asked."""

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

__version__ = "0.1.0"
