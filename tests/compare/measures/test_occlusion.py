"""Accuracy under a hidden square."""

import pytest
import torch

from helpers.measured import constant, images, perfect, trained
from torch_dropblock.compare.measures.occlusion import measure, occluded


def test_a_constant_network_is_as_good_as_before():
    result = measure(trained(constant(9.0, 0.0, 0.0, 0.0)))
    assert result["auc"] == pytest.approx(0.25)
    assert [share for share, _ in result["curve"]] == pytest.approx([0, 9 / 64, 16 / 64, 25 / 64, 36 / 64])
    assert {accuracy for _, accuracy in result["curve"]} == {0.25}


def test_a_network_that_needs_the_first_pixel_fails_when_it_is_hidden():
    def first_pixel(pixels):
        return perfect(pixels[:, :, :1, :1])

    some = images()
    places = torch.full((40, 2), 0.999)
    places[:10] = 0.0
    some.places = places  # of a quarter of the images the first corner is hidden, of others the last
    curve = measure(trained(first_pixel, some))["curve"]
    # the colour of the square is taken for the last class, of which a quarter of these images are
    expected = 1 - (some.labels[:10] != 3).sum().item() / 40
    assert [accuracy for _, accuracy in curve] == pytest.approx([1.0, *[expected] * 4])


def test_the_area_is_that_of_trapezoids():
    result = measure(trained(perfect))
    points = torch.tensor(result["curve"], dtype=torch.float64)
    assert result["auc"] == pytest.approx((torch.trapezoid(points[:, 1], points[:, 0]) / points[-1, 0]).item())


@pytest.mark.parametrize("blank", [1, 3, 8])
def test_squares_are_inside_and_of_their_size(blank):
    some = images()
    for place in (torch.zeros(40, 2), some.places, torch.full((40, 2), 0.9999)):
        hidden = occluded(some.val, blank, place, some.fill) != some.val
        assert (hidden.all(1).sum((1, 2)) == blank**2).all()


def test_squares_are_where_they_are_for_every_network():
    assert torch.equal(images().places, images().places)
    assert images().places.std() > 0.2
