"""The split of the images, and what a row does to them."""

import dataclasses

import numpy as np
import pytest
import torch

from helpers.image_sets import cifar10, labels, load, row


@pytest.fixture(scope="module")
def digits():
    return load(None)


def test_the_split_is_always_the_same_and_has_the_same_share_of_each_class(digits):
    again = load(None)
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(again.val.images, digits.val.images)
    train, val = (np.bincount(labels(part)) for part in (digits.train, digits.val))
    assert np.abs(val - 0.2 * (train + val)).max() < 1


def test_no_image_is_in_both_parts(digits):
    train, val = ({image.numpy().tobytes() for image, _ in part} for part in (digits.train, digits.val))
    assert len(train & val) == 0


@pytest.mark.parametrize(("area", "side"), [(0.25, 16), (0.1, 10), (0.5, 23)])
def test_cutout_blanks_a_square_of_the_area_with_the_mean(tmp_path, area, side):
    source = load(cifar10(tmp_path, np.full((40, 32, 32, 3), 255, np.uint8), np.arange(40) % 10), data="cifar10")
    source = dataclasses.replace(source, mean=(0.2, 0.4, 0.6), place=())
    places = set()
    for image, _ in source.train_of(row(f"cutout:area={area}")):
        blank = (image != 255).any(0)
        assert blank.sum() == side**2
        where = blank.nonzero()
        places.add(tuple(where[0].tolist()))
        assert torch.equal(where.amax(0) - where.amin(0), torch.tensor([side - 1, side - 1]))
        assert image[:, blank].T.unique(dim=0).tolist() == [[51, 102, 153]]
    assert len(places) > 5


@pytest.mark.parametrize("area", [0.001, 0.9])
def test_a_square_of_no_pixel_or_all_is_refused(digits, area):
    with pytest.raises(
        ValueError, match=r"area .* of 8×8 pixels is a square of side [08]; it must have at least 1 and"
    ):
        digits.train_of(row(f"cutout:area={area}"))


def test_autoaugment_changes_grey_images_and_colours(tmp_path, digits):
    for source in (digits, load(cifar10(tmp_path), data="cifar10")):
        source = dataclasses.replace(source, place=())
        augmented = source.train_of(row("autoaugment"))
        pairs = [(augmented[i][0], source.train[i][0]) for i in range(40)]
        assert all(a.shape == b.shape and a.dtype == torch.uint8 for a, b in pairs)
        assert sum(not torch.equal(a, b) for a, b in pairs) > 20


def test_what_is_drawn_follows_from_torchs_seed(digits):
    images = digits.train_of(row("autoaugment+cutout"))

    def draw():
        torch.manual_seed(5)
        return torch.stack([images[i][0] for i in range(30)])

    assert torch.equal(draw(), draw())
