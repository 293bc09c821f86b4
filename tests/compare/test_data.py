"""The images that the settings name, and a part of them."""

import numpy as np
import pytest
import torch

from helpers.image_sets import labels, load


def test_limit_train_is_always_the_same_images_of_all_classes():
    some, again = (load(None, limit_train=100) for _ in range(2))
    assert torch.equal(torch.stack([i for i, _ in some.train]), torch.stack([i for i, _ in again.train]))
    counts = np.bincount(labels(some.train))
    assert (counts.sum(), counts.min(), counts.max()) == (100, 10, 10)
    assert torch.equal(some.val.images, load(None).val.images)
    assert len(load(None, limit_train=1437).train) == 1437


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (9, "--limit-train must be from 10, one image of each class, to all 1437 of them, got 9"),
        (1438, "got 1438"),
        (1430, "--limit-train 1430: 1437 images of 10 classes cannot be split in two parts"),
    ],
)
def test_limits_that_are_not_possible(limit, words):
    with pytest.raises(ValueError, match=words):
        load(None, limit_train=limit)


def test_unknown_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--data must be digits, fashion-mnist, cifar10 or folder:DIR, got 'imagenet'"):
        load(tmp_path, data="imagenet")
