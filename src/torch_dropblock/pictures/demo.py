"""Content of `torch-dropblock demo`: the article's pictures, and a table of shares dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core import geometry
from . import figures
from .draws import Draws
from .photo import builtin_photo
from .wording import joined, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEEP_PROB = 0.7
BLOCKS = (1, 3, 7, 15, 31, 63, 127)
DRAWS = 1000


class Demo:
    """The photograph and the draws of each block size; each random seed has keys of its own."""

    def __init__(self, seed: int) -> None:
        self.keys = range(seed * DRAWS, (seed + 1) * DRAWS)
        self.photo = builtin_photo(long_side=225)
        self.size = (self.photo.shape[1], self.photo.shape[2])
        self.draws = {block: self._draws(self.size, block) for block in [*((b, b) for b in BLOCKS), self.size]}

    def _draws(self, size: tuple[int, int], block: tuple[int, int]) -> Draws:
        return Draws.of(size, block, KEEP_PROB, self.keys)

    def pages(self) -> dict[str, Figure]:
        """Draw the pictures by file name; call this and save them inside `figures.house_style()`."""
        keep = f"Keep probability {KEEP_PROB}."
        rule = f"the first of keys {self.keys[0]}, {self.keys[1]}, … that drops {100 * (1 - KEEP_PROB):.0f} %, rounded"
        names = {block: joined(block) for block in self.draws} | {(1, 1): "1×1, Dropout", self.size: "The whole map"}
        dropout, drop_block = (self._draws((16, 16), (side, side)) for side in (1, 4))
        return {
            "ones.png": figures.ones_page(
                {
                    "Dropout": (dropout.kept, _draw_and_mean(dropout)),
                    "DropBlock 4×4": (drop_block.kept, _draw_and_mean(drop_block)),
                },
                "A 16×16 map under Dropout and DropBlock",
                f"{keep} Dark units are dropped.\n“This draw” is {rule}.",
            ),
            "photo.png": figures.photo_page(
                self.photo,
                {
                    "Original": (None, "nothing dropped"),
                    "Dropout": (self.draws[1, 1].kept, _draw_and_mean(self.draws[1, 1])),
                    "DropBlock 15×15": (self.draws[15, 15].kept, _draw_and_mean(self.draws[15, 15])),
                },
                "A photograph under Dropout and DropBlock",
                f"{keep} {figures.HOLES}\n“This draw” is {rule}.",
                columns=3,
                scale=2,
            ),
            "block-sizes.png": figures.photo_page(
                self.photo,
                {
                    names[block]: (draws.kept, f"draw {percent(draws.share)}\nmean {_mean_and_error(draws)}")
                    for block, draws in self.draws.items()
                },
                "From single pixels to the whole map",
                f"{keep} {figures.HOLES}\nA draw is {rule}, or nearest.\n"
                f"The mean is over {DRAWS:,} keys, ± its standard error from 0.1 % on.\n"
                "Larger blocks vary more; the largest drops all or nothing.",
                columns=4,
                scale=1,
            ),
            "keep-rates.png": figures.keep_rates_page((28, 28), 7, KEEP_PROB),
        }

    def shares(self) -> list[tuple[str, ...]]:
        """Return for each block its size, γ, the shares dropped in percent, and the key of its picture.

        The shares are those requested, expected, measured and pictured.
        """
        rows: list[tuple[str, ...]] = []
        for block, draws in self.draws.items():
            gamma = geometry.seed_probability(self.size, block, KEEP_PROB)
            shares = (1 - KEEP_PROB, 1 - geometry.expected_keep_rate(self.size, block, gamma), draws.share)
            requested, expected, picture = (f"{100 * share:.2f}" for share in shares)
            measured = f"{100 * draws.mean:.2f} ± {100 * draws.error:.2f}"
            rows.append((joined(block), f"{gamma:.4g}", requested, expected, measured, picture, str(draws.key)))
        return rows


def _draw_and_mean(draws: Draws) -> str:
    return f"this draw {percent(draws.share)}\n{DRAWS:,} draws {_mean_and_error(draws)}"


def _mean_and_error(draws: Draws) -> str:
    """Return the mean, with its standard error from 0.1 percentage points on."""
    return percent(draws.mean) if draws.error < 0.001 else f"{100 * draws.mean:.1f}±{100 * draws.error:.1f} %"
