"""Tokens in the order of rows and columns, or not."""

import pytest

from helpers.small_networks import Transformer
from torch_dropblock.networks.inputs import Inputs
from torch_dropblock.networks.raster import scrambled


@pytest.mark.parametrize("image", [(32, 32), (16, 64)])
@pytest.mark.parametrize("mixed", [False, True])
def test_order(mixed, image):
    model = Transformer(scrambled=mixed)
    inputs = Inputs.of(model, (1, 3, *image))
    grid = (image[0] // 4, image[1] // 4)
    assert scrambled(model, inputs, {grid: ["blocks.0.norm", "blocks.0"]}) == ({grid} if mixed else set())


def test_nothing_to_look_at():
    model = Transformer(scrambled=True)
    assert scrambled(model, Inputs.of(model, (1, 3, 32, 32)), {}) == set()
    assert scrambled(model.to("meta"), Inputs.of(model, (1, 3, 32, 32)), {(8, 8): ["blocks.0"]}) == set()
