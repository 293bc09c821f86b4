"""Images to measure on: which, and what is kept of them."""

import numpy as np
import torch

from helpers import image_sets
from helpers.measured import images
from torch_dropblock.compare.measures import images as module
from torch_dropblock.compare.measures.images import images_of

CPU = torch.device("cpu")


def test_digits_are_measured_on_all_of_them_and_on_a_photograph():
    source = image_sets.load(None)
    found = images_of(source, CPU)
    assert torch.equal(found.val, source.val.images)
    assert torch.equal(found.labels, source.val.labels)
    assert found.fill.tolist() == source.mean_byte
    assert (found.others_name, found.others.shape[1:], found.others.dtype) == ("photograph", (1, 8, 8), torch.uint8)
    assert 400 < len(found.others) <= module.MOST_PIECES
    assert found.others.float().std() > 20


def test_colours_are_measured_on_digits_in_grey(tmp_path):
    found = images_of(image_sets.load(image_sets.cifar10(tmp_path), data="cifar10"), CPU)
    assert (found.others_name, found.others.shape) == ("digits", (1797, 3, 32, 32))
    assert torch.equal(found.others[:, 0], found.others[:, 2])


def test_a_folder_is_measured_as_it_is_validated(tmp_path):
    source = image_sets.folder(image_sets.images(tmp_path, ("a", "b"), 10))
    found = images_of(source, CPU)
    assert (len(found.val), found.val.dtype) == (4, torch.uint8)
    assert found.labels.tolist() == image_sets.labels(source.val_as_is())
    assert torch.equal(found.val[3], source.val_as_is()[3][0])


def test_many_images_are_taken_evenly(monkeypatch):
    monkeypatch.setattr(module, "MOST", 100)
    source = image_sets.load(None)
    found = images_of(source, CPU)
    assert torch.equal(found.labels, source.val.labels[::4])


def test_corrupted_images_are_made_once_if_they_are_few(monkeypatch):
    some = images(6)
    first, second = list(some.corrupted()), list(some.corrupted())
    assert len(first) == 12
    assert all(a[2] is b[2] for a, b in zip(first, second, strict=True))
    monkeypatch.setattr(module, "KEPT_BYTES", 12 * some.val.nbytes - 1)
    large = images(6)
    again = [list(large.corrupted()) for _ in range(2)]
    for of_these in again:
        assert all(np.array_equal(a[2], b[2]) for a, b in zip(first, of_these, strict=True))
    assert again[0][0][2] is not again[1][0][2]
