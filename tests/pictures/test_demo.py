"""What the demo shows is what the layer does: its masks and its table."""

import pytest
import torch

from torch_dropblock.pictures import demo, figures
from torch_dropblock.pictures.figures import share_dropped


@pytest.fixture(scope="module")
def content():
    return demo.Demo(seed=3)


def test_masks_are_made_of_whole_blocks(content):
    for (height, width), kept in content.masks.items():
        dropped = (~kept).float()[None]
        corners = -torch.max_pool2d(-dropped, (height, width), stride=1)
        grown = torch.max_pool2d(
            torch.nn.functional.pad(corners, (width - 1, width - 1, height - 1, height - 1)), (height, width), stride=1
        )
        assert torch.equal(grown, dropped)


def test_the_table_says_what_theory_and_the_pictures_say(content, monkeypatch):
    monkeypatch.setattr(demo, "MASKS", 100)
    rows = content.shares()
    assert len(rows) == len(demo.BLOCKS) + 1
    for (_, gamma, asked, expected, _, picture), (block, kept) in zip(rows, content.masks.items(), strict=True):
        assert asked == expected == "30.00"
        assert 0 < float(gamma) <= 0.3
        assert float(picture) == pytest.approx(100 * share_dropped(kept), abs=0.005), block


def test_pages(content):
    with figures.house_style():
        pages = content.pages()
    assert list(pages) == ["ones.png", "photo.png", "block-sizes.png", "keep-rates.png"]
    assert [len(page.axes) for page in pages.values()] == [2, 3, len(demo.BLOCKS) + 1, 2]
