"""What the demo shows is what the layer does: its masks and its table."""

import pytest
import torch

from helpers.command import check_texts
from torch_dropblock import drop_block_mask
from torch_dropblock.pictures import demo, figures

DRAWS = 60


@pytest.fixture(scope="module")
def content():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "DRAWS", DRAWS)
        return demo.Demo(seed=3)


def test_masks_are_made_of_whole_blocks(content):
    for (height, width), draws in content.draws.items():
        dropped = (~draws.kept).float()[None]
        corners = -torch.max_pool2d(-dropped, (height, width), stride=1)
        grown = torch.max_pool2d(
            torch.nn.functional.pad(corners, (width - 1, width - 1, height - 1, height - 1)), (height, width), stride=1
        )
        assert torch.equal(grown, dropped)


def test_the_table_says_what_theory_and_the_pictures_say(content):
    rows = content.shares()
    assert len(rows) == len(demo.BLOCKS) + 1
    for row, (block, draws) in zip(rows, content.draws.items(), strict=True):
        _, gamma, requested, expected, measured, picture, key = row
        assert requested == expected == "30.00"
        assert 0 < float(gamma) <= 0.3
        assert measured == f"{100 * draws.mean:.2f} ± {100 * draws.error:.2f}"
        assert float(picture) == pytest.approx(100 * draws.share, abs=0.005)
        assert int(key) in range(3 * DRAWS, 4 * DRAWS)
        assert torch.equal(drop_block_mask((1, *content.size), block, keep_prob=0.7, key=int(key))[0], draws.kept)


def test_pictures_are_near_the_mean(content):
    """Of blocks so small that some draw is."""
    for side in (1, 3, 7, 15, 31):
        assert round(100 * content.draws[side, side].share) == 30


def test_pages(content):
    with figures.house_style():
        pages = content.pages()
        for page in pages.values():
            page.draw_without_rendering()
            check_texts(page)
    assert list(pages) == ["ones.png", "photo.png", "block-sizes.png", "keep-rates.png"]
    assert [len(page.axes) for page in pages.values()] == [2, 3, len(demo.BLOCKS) + 1, 2]
    draws = content.draws[15, 15]
    (detail,) = pages["photo.png"].axes[2].texts
    assert detail.get_text().startswith(f"this draw {100 * draws.share:.1f} %\n")
    assert f"{100 * draws.mean:.1f}" in detail.get_text().splitlines()[1]
