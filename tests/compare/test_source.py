"""The split of the images, and what a row does to them."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from helpers.image_sets import cifar10, labels, load, row
from torch_dropblock.compare.batches import Augmentation


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


@pytest.mark.parametrize("area", [0.001, 0.9])
def test_a_square_of_no_pixel_or_all_is_refused(digits, area):
    with pytest.raises(
        ValueError, match=r"area .* of 8×8 pixels is a square of side [08]; it must have at least 1 and"
    ):
        digits.augmentation_of(row(f"cutout:area={area}"))


def test_each_row_has_its_augmentation(tmp_path, digits):
    assert digits.augmentation_of(row("dropblock")) == Augmentation(shift=1, fill=tuple(digits.mean_byte))
    source = load(cifar10(tmp_path), data="cifar10")
    both = source.augmentation_of(row("cutout+autoaugment"))
    assert (both.shift, both.mirror, both.blank, both.policy) == (4, True, 16, v2.AutoAugmentPolicy.CIFAR10)
    assert both.fill == tuple(round(255 * mean) for mean in source.mean)
