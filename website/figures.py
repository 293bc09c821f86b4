"""Draw every figure of the documentation into docs/images: `python website/figures.py`.

The pictures of the demo are among them. The same seed draws the same pictures; `--seed` draws others.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from torch_dropblock import KeepProbSchedule, expected_keep_rate, insert_dropblock, seed_probability
from torch_dropblock.core import reference
from torch_dropblock.core.checks import Rate
from torch_dropblock.networks.schedule import CURVES
from torch_dropblock.pictures import figures
from torch_dropblock.pictures.demo import Demo
from torch_dropblock.pictures.draws import first_near, share_dropped
from torch_dropblock.pictures.figures import ACCENT, DROPPED, INK, KEPT, MUTED, caption, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
SIZE, BLOCK = (28, 28), 7
SHARES = [i / 200 for i in range(201)]


def panels(count: int, width: float, height: float, *, left: float = 0.7, bottom: float = 0.6) -> list[Axes]:
    """Make axes side by side, each `width` by `height` inches, with room for a caption, an axis label and ticks."""
    gap, head = 0.25, 0.65
    size = (count * (left + width + gap), head + height + bottom)
    figure = Figure(figsize=size)
    boxes = [(left + i * (left + width + gap), bottom, width, height) for i in range(count)]
    return [figure.add_axes((x / size[0], y / size[1], w / size[0], h / size[1])) for x, y, w, h in boxes]


def page_of(axes: Axes) -> Figure:
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


# --- an algorithm in three steps ---------------------------------------------------------------------------------


def draw_units(axes: Axes, values: Tensor, colors: Sequence[str]) -> Axes:
    """Draw the units of a map of shape (H, W), coloured by value."""
    height, width = values.shape
    axes.pcolormesh(values.numpy(), cmap=ListedColormap(colors), vmin=0, vmax=len(colors) - 1, edgecolors="white")
    axes.set(aspect="equal", xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def algorithm(seed: int) -> Figure:
    """Draw seeds in the valid region, their blocks, and the map after normalisation: the first draw near the mean."""
    side, block, keep_prob = 14, 5, 0.7
    valid = side - block + 1
    gamma = seed_probability((side, side), block, keep_prob)
    draws = [
        torch.rand(1, 1, valid, valid, generator=torch.Generator().manual_seed(number)) < gamma
        for number in range(seed, seed + 100)
    ]
    masks = [reference.kept_mask(seeds, (block, block))[0, 0] for seeds in draws]
    index = first_near(map(share_dropped, masks), 1 - keep_prob)
    seeds, kept = draws[index], masks[index]
    left, middle, right = panels(3, 2.2, 2.2, left=0.15, bottom=0.15)

    where = torch.zeros(side, side)
    where[:valid, :valid] = 1 + seeds[0, 0].float()
    draw_units(left, where, ["#eceff3", KEPT, ACCENT])
    caption(left, "Seeds", f"in the valid region, γ = {gamma:.3f}")

    draw_units(middle, kept.int(), [DROPPED, KEPT])
    for row, column in seeds[0, 0].nonzero().tolist():
        edge = Rectangle((column, row), block, block, fill=False, edgecolor=ACCENT, linewidth=1.4, clip_on=False)
        middle.add_patch(edge)
        middle.add_patch(Rectangle((column, row), 1, 1, color=ACCENT))
    caption(middle, "Blocks", f"{percent(share_dropped(kept))} dropped, {100 * (1 - keep_prob):.0f} % requested")

    scale = kept.numel() / int(kept.sum())
    draw_units(right, kept.int(), ["#f4f5f7", "#8db8dd"])
    caption(right, "What is kept, scaled", f"× {kept.numel()} / {int(kept.sum())} = {scale:.2f}")
    return page_of(left)


# --- the probability of a seed -----------------------------------------------------------------------------------


def drops(keep_prob: float, rate: Rate) -> float:
    return 1 - expected_keep_rate(SIZE, BLOCK, seed_probability(SIZE, BLOCK, keep_prob, rate))


def asked_and_dropped() -> Figure:
    """Plot the share dropped against the requested share, and γ, for both rates."""
    left, right = panels(2, 2.7, 2.7)
    lines: tuple[tuple[Rate, str, str], ...] = (("exact", "exact γ", INK), ("paper", "γ of equation 1", ACCENT))
    for rate, name, color in lines:
        left.plot([100 * s for s in SHARES], [100 * drops(1 - s, rate) for s in SHARES], color=color, label=name)
        gammas = [seed_probability(SIZE, BLOCK, 1 - s, rate) for s in SHARES[1:-1]]
        right.plot([100 * s for s in SHARES[1:-1]], gammas, color=color, label=name)
    half = 100 * drops(0.5, "paper")
    left.plot([50, 50], [half, 50], color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
    left.annotate(f"{half:.0f} %", (50, half), xytext=(6, -12), textcoords="offset points", color=ACCENT)
    left.annotate("50 %", (50, 50), xytext=(-34, 3), textcoords="offset points", color=INK)
    left.set(xlim=(0, 100), ylim=(0, 100), xlabel="asked: share dropped, %", ylabel="dropped, %", aspect="equal")
    right.set(xlim=(0, 100), yscale="log", xlabel="asked: share dropped, %", ylabel="γ")
    for axes, name in ((left, "What is dropped"), (right, "The seed probability")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e7ec", linewidth=0.8)
        axes.legend(frameon=False, loc="upper left")
        caption(axes, name, f"map of {SIZE[0]}×{SIZE[1]}, blocks of {BLOCK}×{BLOCK}")
    return page_of(left)


# --- beside other implementations --------------------------------------------------------------------------------

# for each column of the table: colour, marker and line, and where its name stands beside the plot, in percent
PEERS = {
    "torch-dropblock": ("#0072b2", "o", "-", 10),
    "torchvision": ("#00795a", "s", "-", 6.7),
    "timm": (ACCENT, "^", "-", 59),
    "dropblock": ("#8f4a86", "v", "-", 3.2),
    "the article's code": (MUTED, "D", (0, (4, 3)), 13.2),
}
# values written beside their points, and how far from them, in points
VALUES = (
    ("timm", "14×14", (-8, 12)),
    ("timm", "7×7", (0, 12)),
    ("timm", "40×10", (0, -12)),
    ("timm", "4×4", (0, 12)),
    ("the article's code", "40×10", (10, 12)),
    ("the article's code", "4×4", (13, 13)),
    ("torch-dropblock", "7×7", (0, 14)),
    ("dropblock", "7×7", (0, -12)),
    ("dropblock", "4×4", (0, -12)),
)


def measured_rates() -> tuple[dict[str, dict[str, float]], str]:
    """Read the table of `benchmarks/rates.py` from the page that has it.

    Returns the share in percent by implementation and map, for blocks of 7, and the line below the table.
    """
    pages = (page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))))
    text = next(text for text in pages if "<!-- rates:begin -->" in text)
    content = text.partition("<!-- rates:begin -->")[2].partition("<!-- rates:end -->")[0]
    table, _, made_with = content.strip().partition("\n\n")
    header, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines())
    shares: dict[str, dict[str, float]] = {name: {} for name in PEERS}
    for case, *cells in rows:
        size, _, block = case.partition(", ")
        for name, cell in zip(header[1:], cells, strict=True):
            if name in PEERS and block == "7" and cell.endswith(" %"):  # other cells name an error
                shares[name][size] = float(cell.removesuffix(" %"))
    return shares, made_with


def drop_rates() -> Figure:
    """Plot the share that this library and its peers drop when 10 % is requested, by the size of the map."""
    shares, made_with = measured_rates()
    versions = dict(re.findall(r"(\S+) (\d[^,;\s]*)", made_with))
    processor, planes = made_with.split("; ")[1], re.findall(r"([\d,]+) planes", made_with)[0]
    width, height, (left, right, below, above) = 5.8, 4.4, (0.75, 1.75, 0.85, 0.8)
    figure = Figure(figsize=(width, height), dpi=240)
    title = "What is really dropped when 10 % is requested"
    figure.text(0.2 / width, 1 - 0.36 / height, title, fontsize=13, weight="bold")
    figure.text(0.2 / width, 1 - 0.6 / height, "share of the units, for blocks of 7×7; log scale", color=MUTED)
    made = f"{planes} planes for each point; torch {versions['torch']}, {processor}"
    figure.text(0.2 / width, 0.16 / height, made, color=MUTED)
    size = 1 - (left + right) / width, 1 - (below + above) / height
    draw_shares(figure.add_axes((left / width, below / height, *size)), shares, versions)
    return figure


def draw_shares(axes: Axes, shares: dict[str, dict[str, float]], versions: dict[str, str]) -> Axes:
    """Plot the shares in percent by implementation and map, with names and some values beside the lines."""
    maps = list(shares["torch-dropblock"])
    for name, (color, marker, line, place) in PEERS.items():
        ours = name == "torch-dropblock"
        at, values = [maps.index(size) for size in shares[name]], list(shares[name].values())
        thick, large, order = (5, 10, 2) if ours else (1.4, 6, 3)
        axes.plot(
            at, values, color=color, linestyle=line, linewidth=thick, zorder=order,
            marker=marker, markersize=large, markerfacecolor="white",
        )  # fmt: skip
        label = f"{name} {versions.get(name, '')}"
        label += "".join(f"\nrefuses {size}" for size in maps if size not in shares[name])
        weight = "bold" if ours else "normal"
        axes.annotate(label, (len(maps) - 0.62, place), color=color, weight=weight, va="center", annotation_clip=False)
    for name, size, offset in VALUES:
        value = shares[name][size]
        axes.annotate(
            f"{value:.2g} %", (maps.index(size), value), xytext=offset, textcoords="offset points",
            color=PEERS[name][0], ha="center", va="center", weight="bold",
        )  # fmt: skip
    axes.axhline(10, color=INK, linewidth=1, linestyle=(0, (2, 2)))
    axes.set(xlim=(-0.3, len(maps) - 0.8), xlabel="feature map", yscale="log", ylim=(2.2, 150))
    axes.set_xticks(range(len(maps)), maps)
    axes.set_yticks([3, 10, 30, 100], ["3 %", "10 %", "30 %", "100 %"])
    axes.set_yticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


# --- block sizes and schedules -----------------------------------------------------------------------------------


def from_dropout_to_whole_planes() -> Figure:
    """Plot the spread of blocks over a plane, from Dropout (block 1) to whole planes (block 28), at one drop rate."""
    blocks = range(1, SIZE[0] + 1)
    gammas = [seed_probability(SIZE, b, 0.9) for b in blocks]
    seeds = [g * (SIZE[0] - b + 1) ** 2 for g, b in zip(gammas, blocks, strict=True)]
    untouched = [(1 - g) ** ((SIZE[0] - b + 1) ** 2) for g, b in zip(gammas, blocks, strict=True)]
    left, right = panels(2, 2.7, 2.2)
    left.plot(blocks, seeds, color=INK, marker="o", markersize=3)
    left.set(yscale="log", xlabel="block size", ylabel="seeds in a plane, mean")
    right.plot(blocks, [100 * p for p in untouched], color=INK, marker="o", markersize=3)
    right.set(ylim=(0, 100), xlabel="block size", ylabel="planes left whole, %")
    for axes, name in ((left, "Fewer, larger blocks"), (right, "More planes left whole")):
        axes.set(xlim=(0, SIZE[0] + 1), xticks=[1, 7, 14, 21, 28])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e7ec", linewidth=0.8)
        caption(axes, name, f"map of {SIZE[0]}×{SIZE[1]}, a tenth dropped")
    return page_of(left)


def curves() -> Figure:
    """Plot keep_prob over the training for each curve of the schedule."""
    (axes,) = panels(1, 5.4, 2.4, left=0.95)
    styles = ((INK, "-"), (ACCENT, "-"), (MUTED, "--"), ("#6b8fb5", "-."))
    for (name, curve), (color, line) in zip(CURVES.items(), styles, strict=True):
        axes.plot([100 * p for p in SHARES], [1 - 0.1 * curve(p) for p in SHARES], line, color=color, label=name)
    axes.set(xlim=(0, 100), ylim=(0.89, 1.003), xlabel="progress of the training, %", ylabel="keep_prob")
    axes.set_yticks([0.9, 0.925, 0.95, 0.975, 1.0])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e7ec", linewidth=0.8)
    axes.legend(frameon=False, loc="upper right")
    caption(axes, "keep_prob in a training", "of a layer made with keep_prob 0.9")
    return page_of(axes)


def training_log(seed: int) -> Figure:
    """Train a small network for 100 steps on noise, log `KeepProbSchedule.stats()`, and plot the log."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 24 * 24, 4))
    for name, keep_prob in (("0", 0.9), ("2", 0.8)):
        insert_dropblock(model, name, block_size=5, keep_prob=keep_prob)
    schedule, optimizer = KeepProbSchedule(model, total_steps=100), torch.optim.SGD(model.parameters(), 0.01)
    log = []
    for _ in range(100):
        loss = nn.functional.cross_entropy(model(torch.randn(16, 3, 28, 28)), torch.randint(4, (16,)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        log.append(schedule.stats())
        schedule.step()
    left, right = panels(2, 2.7, 2.2)
    for name, color in (("0", INK), ("2", ACCENT)):
        left.plot([row[f"keep_prob/{name}"] for row in log], color=color, label=f"keep_prob/{name}")
        right.plot([row[f"dropped/{name}"] for row in log], color=color, linewidth=0.8, label=f"dropped/{name}")
        right.plot([1 - row[f"keep_prob/{name}"] for row in log], color=MUTED, linestyle=(0, (3, 2)))
    left.set(ylim=(0.75, 1.01))
    for axes, title, what in (
        (left, "keep_prob", "two layers, of 0.9 and 0.8"),
        (right, "Really dropped", "in each step; dashed: 1 - keep_prob"),
    ):
        axes.set(xlim=(0, 100), xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e7ec", linewidth=0.8)
        axes.legend(frameon=False, loc="lower left" if axes is left else "upper left")
        caption(axes, title, what)
    return page_of(left)


def pages(seed: int) -> dict[str, Figure]:
    """Draw every figure by file name; call this and save them inside `figures.house_style()`."""
    return Demo(seed).pages() | {
        "algorithm.png": algorithm(seed),
        "asked-and-dropped.png": asked_and_dropped(),
        "drop-rates.png": drop_rates(),
        "limits.png": from_dropout_to_whole_planes(),
        "schedule.png": curves(),
        "training-log.png": training_log(seed),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw every figure of the documentation.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=IMAGES, metavar="DIR")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with figures.house_style():
        for name, page in pages(options.seed).items():
            # without matplotlib's version, so that the same picture gives the same file
            page.savefig(options.out / name, metadata={"Software": None})
            print(options.out / name)


if __name__ == "__main__":
    main()
