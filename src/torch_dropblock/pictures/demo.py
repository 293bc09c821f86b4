"""Content of `torch-dropblock demo`: the article's pictures, and a table of shares dropped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..core import geometry
from ..layer.functional import drop_block2d
from . import figures
from .figures import share_dropped
from .photo import builtin_photo
from .wording import joined, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEEP_PROB = 0.7
BLOCKS = (1, 3, 7, 15, 31, 63, 127)
MASKS = 1000


class Demo:
    """The photograph and a mask of each block size, reproducible for a random seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.photo = builtin_photo(long_side=225)
        self.size = (self.photo.shape[1], self.photo.shape[2])
        self.masks = {
            block: figures.drop_block_mask(self.size, block, KEEP_PROB, self.generator)
            for block in [*((b, b) for b in BLOCKS), self.size]
        }

    def pages(self) -> dict[str, Figure]:
        """Draw the pictures by file name; call this and save them inside `figures.house_style()`."""
        names = {block: f"Block {joined(block)}" for block in self.masks}
        names[1, 1] += ", Dropout"
        names[self.size] += ", the map"
        keep = KEEP_PROB
        return {
            "ones.png": figures.ones_page(
                {
                    "Dropout": figures.dropout_mask((16, 16), keep, self.generator),
                    "DropBlock 4×4": figures.drop_block_mask((16, 16), (4, 4), keep, self.generator),
                },
                f"A 16×16 map of ones, keep probability {keep}",
                f"Dark units are dropped. One draw of each: over many draws, both drop {percent(1 - keep)}.",
            ),
            "photo.png": figures.photo_page(
                self.photo,
                {
                    "Original": None,
                    "Dropout": figures.dropout_mask(self.size, keep, self.generator),
                    "DropBlock 15×15": self.masks[15, 15],
                },
                f"What is left of a photograph, keep probability {keep}",
                f"One mask for all three colours. The layer also multiplies what is kept by about {1 / keep:.2f}; "
                "the picture leaves that out.",
                columns=3,
                scale=3,
            ),
            "block-sizes.png": figures.photo_page(
                self.photo,
                {names[block]: kept for block, kept in self.masks.items()},
                f"From single pixels to the whole map, keep probability {keep}",
                f"One draw of each. On average, each drops {percent(1 - keep)}; larger blocks vary more, "
                "and one as large as the map drops all or nothing.",
                columns=4,
                scale=2,
            ),
            "keep-rates.png": figures.keep_rates_page((28, 28), 7, keep),
        }

    def shares(self) -> list[tuple[str, ...]]:
        """Return for each block its size, γ, and the share dropped in percent: asked, expected, measured, pictured."""
        rows: list[tuple[str, ...]] = []
        for block, kept in self.masks.items():
            gamma = geometry.seed_probability(self.size, block, KEEP_PROB)
            shares = (1 - KEEP_PROB, 1 - geometry.expected_keep_rate(self.size, block, gamma), share_dropped(kept))
            asked, expected, picture = (f"{100 * share:.2f}" for share in shares)
            mean, error = self._measured(block)
            measured = f"{100 * mean:.2f} ± {100 * error:.2f}"
            rows.append((joined(block), f"{gamma:.4g}", asked, expected, measured, picture))
        return rows

    def _measured(self, block: tuple[int, int]) -> tuple[float, float]:
        """Return the mean share dropped over independent masks, and its standard error."""
        kept = []
        for _ in range(MASKS // 50):
            ones = torch.ones(50, 1, *self.size)
            y = drop_block2d(ones, block, keep_prob=KEEP_PROB, inplace=True, generator=self.generator)
            kept.append((y != 0).flatten(1).float().mean(1))
        shares = 1 - torch.cat(kept)
        return shares.mean().item(), shares.std().item() / math.sqrt(len(shares))
