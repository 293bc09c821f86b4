"""Pictures and numbers of the playground for given settings, independent of the page.

The picture stands for a feature map of three channels: red, green and blue. `draw` calls the layer that the code on
the page makes, on ones of the map's size. Where the output is zero, the picture becomes black in that channel.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..core import checks, geometry
from ..core.checks import Rate
from ..core.geometry import clamp
from ..layer.modules import DropBlock2d
from ..networks.schedule import CURVES, KeepProbSchedule
from ..pictures.photo import builtin_photo

METHODS = ("DropBlock", "Dropout", "SpatialDropout")
CHANNELS = ("red", "green", "blue")
SIDE = 512  # pixels of the picture's longer side as it is shown
LARGEST_MAP = 128
LARGEST_SEED = 2**32 - 1  # PyTorch's CPU generator uses 32 bits of a random seed
STEPS = 100  # steps of the training whose progress is shown
# units in all masks drawn to measure the share dropped: some milliseconds
MEASURED_UNITS = 1_000_000
MOST_DRAWS = 1000

Levels = npt.NDArray[np.uint8]

# PyTorch's layers draw from its global generator, which only one visitor may use at a time
_generator = threading.Lock()


@dataclass(frozen=True)
class Settings:
    """The playground's settings.

    Args:
        method: one of `METHODS`; only DropBlock has a block, a rate, shared channels and a schedule.
        block_size: height and width of a block.
        keep_prob: probability that a unit is kept, at the end of the training.
        rate: `"exact"` or `"paper"`.
        share_channels: one mask for all three colours.
        map_side: units of the feature map along the longer side of the picture.
        seed: random seed; the same one draws the same mask again. The default is the first that drops 30 %, rounded,
            of the built-in photograph.
        progress: share of the training that is over, in [0, 1].
        curve: the curve of the schedule, one of `CURVES`.
    """

    method: str = "DropBlock"
    block_size: tuple[int, int] = (7, 7)
    keep_prob: float = 0.7
    rate: Rate = "exact"
    share_channels: bool = False
    map_side: int = 28
    seed: int = 6
    progress: float = 1.0
    curve: str = "linear"

    def __post_init__(self) -> None:
        for name, value, allowed in (("method", self.method, METHODS), ("curve", self.curve, CURVES)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        checks.positive_ints("block_size", self.block_size, 2)
        checks.probability("keep_prob", self.keep_prob)
        checks.rate(self.rate)
        checks.flag("share_channels", self.share_channels)
        if checks.whole_number("map_side", self.map_side, at_least=1) > LARGEST_MAP:
            raise ValueError(f"map_side must be at most {LARGEST_MAP}, got {self.map_side}")
        if checks.whole_number("seed", self.seed, at_least=0) > LARGEST_SEED:
            raise ValueError(f"seed must be at most {LARGEST_SEED}, got {self.seed}")
        checks.probability("progress", self.progress)

    def map_size(self, levels: Levels) -> tuple[int, int]:
        """Return height and width of the feature map, in the proportions of the picture."""
        height, width = levels.shape[:2]
        scale = self.map_side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def layer(self) -> nn.Module:
        """Build the layer at the current progress of the training."""
        if self.method == "Dropout":
            return nn.Dropout(self._p)
        if self.method == "SpatialDropout":
            return nn.Dropout2d(self._p)
        return self._drop_block(self.progress)

    def code(self) -> str:
        """Return the Python code that makes `layer()`."""
        if self.method != "DropBlock":
            name = {"Dropout": "Dropout", "SpatialDropout": "Dropout2d"}[self.method]
            return f"from torch import nn\n\nlayer = nn.{name}(p={self._p!r})"
        options = f"{self._block!r}, keep_prob={self.keep_prob!r}"
        options += f", rate={self.rate!r}" * (self.rate != "exact") + ", share_channels=True" * self.share_channels
        made = f"layer = DropBlock2d({options})".replace("'", '"')
        if self.progress == 1:
            return f"from torch_dropblock import DropBlock2d\n\n{made}"
        schedule = (
            f'KeepProbSchedule(layer, total_steps={STEPS}, curve="{self.curve}", start_step={_step(self.progress)})'
        )
        return f"from torch_dropblock import DropBlock2d, KeepProbSchedule\n\n{made}\nschedule = {schedule}"

    def keep_prob_at(self, progress: float) -> float:
        """Return the layer's keep_prob at some progress of the training; Dropout's is constant."""
        return self._drop_block(progress).keep_prob if self.method == "DropBlock" else self.keep_prob

    def _drop_block(self, progress: float) -> DropBlock2d:
        layer = DropBlock2d(self._block, keep_prob=self.keep_prob, rate=self.rate, share_channels=self.share_channels)
        KeepProbSchedule(layer, STEPS, curve=self.curve, start_step=_step(progress))
        return layer

    @property
    def _block(self) -> int | tuple[int, int]:
        return self.block_size[0] if self.block_size[0] == self.block_size[1] else self.block_size

    @property
    def _p(self) -> float:
        return round(1 - self.keep_prob, 12)  # 0.3, not 0.30000000000000004


@dataclass(frozen=True)
class View:
    """One draw of a layer over a picture, and the numbers for its settings; made by `draw`.

    Args:
        settings: the settings.
        levels: the picture, of shape (H, W, 3).
        kept: the mask of each channel, of shape (3, h, w).
        scale: factor by which the layer multiplies kept units; 0 if none is kept.
        shares: the share dropped in each of many more draws.
    """

    settings: Settings
    levels: Levels
    kept: npt.NDArray[np.bool_]
    scale: float
    shares: npt.NDArray[np.float64]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the feature map."""
        return self.settings.map_size(self.levels)

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of a block clamped to the map: (1, 1) for Dropout, the map for SpatialDropout."""
        wanted = {"Dropout": (1, 1), "SpatialDropout": self.size}.get(self.settings.method, self.settings.block_size)
        height, width = clamp(self.size, wanted)
        return height, width

    @property
    def keep_prob(self) -> float:
        """keep_prob of the layer at the current progress of the training."""
        return self.settings.keep_prob_at(self.settings.progress)

    @cached_property
    def gamma(self) -> float:
        return geometry.seed_probability(self.size, self.block, self.keep_prob, self.settings.rate)

    @property
    def expected(self) -> float:
        """The expected share dropped, by theory."""
        return 1 - geometry.expected_keep_rate(self.size, self.block, self.gamma)

    @property
    def share_dropped(self) -> float:
        """The share dropped in this draw."""
        return 1 - float(self.kept.mean())

    @property
    def measured(self) -> tuple[float, float]:
        """The mean share over many draws, and its standard error."""
        return float(self.shares.mean()), float(self.shares.std(ddof=1)) / math.sqrt(len(self.shares))

    @cached_property
    def keep_rates(self) -> Tensor:
        """The probability that each unit of the map is kept."""
        return geometry.keep_rate_map(self.size, self.block, self.gamma)


def draw(settings: Settings, levels: Levels) -> View:
    """Call the layer on ones of three channels, and on many more to measure the share dropped."""
    layer, size = settings.layer(), settings.map_size(levels)
    draws = max(2, min(MOST_DRAWS, MEASURED_UNITS // (len(CHANNELS) * math.prod(size))))
    with _generator, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(settings.seed)
        y = layer(torch.ones(1, len(CHANNELS), *size))[0]
        more = layer(torch.ones(draws, len(CHANNELS), *size))
    shares = 1 - (more != 0).flatten(1).double().mean(1)
    return View(settings, levels, (y != 0).numpy(), y.max().item(), shares.numpy())


def as_levels(photo: Tensor) -> Levels:
    """Scale a photograph of shape (3, H, W) in [0, 1] to a longer side of `SIDE` pixels, as bytes (H, W, 3)."""
    height, width = photo.shape[1:]
    scale = SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if size != (height, width):
        photo = nn.functional.interpolate(photo[None], size, mode="bilinear", antialias=scale < 1)[0]
    return (photo * 255).round().clamp(0, 255).byte().movedim(0, -1).contiguous().numpy()


def _step(progress: float) -> int:
    return round(STEPS * progress)


@lru_cache(maxsize=1)
def builtin_levels() -> Levels:
    """Return the face in the built-in photograph, 512×512."""
    levels = as_levels(builtin_photo()[:, :512])
    levels.flags.writeable = False  # shared by all visitors
    return levels
