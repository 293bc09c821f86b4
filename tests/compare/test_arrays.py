"""Data sets that fit into memory: where they come from, and files that are none."""

import struct

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from helpers.image_sets import cifar10, labels, load
from torch_dropblock.compare import arrays, data
from torch_dropblock.compare.settings import Settings


@pytest.fixture(scope="module")
def digits():
    return load(None)


def test_digits(digits):
    assert (len(digits.train), len(digits.val), digits.classes, digits.channels, digits.side) == (1437, 360, 10, 1, 8)
    image, label = digits.train[0]
    assert (image.shape, image.dtype, type(label)) == ((1, 8, 8), torch.uint8, int)
    assert digits.policy == v2.AutoAugmentPolicy.SVHN
    assert (digits.shift, digits.mirror, digits.are_digits) == (1, False, True)


def test_mean_and_std_are_those_of_the_training_images(digits):
    pixels = digits.train.images.double() / 255
    assert digits.mean == pytest.approx([pixels.mean().item()])
    assert digits.std == pytest.approx([pixels.std().item()])


def test_cifar10_from_arrays(tmp_path):
    source = load(cifar10(tmp_path), data="cifar10")
    assert (len(source.train), len(source.val), source.classes, source.channels, source.side) == (40, 20, 10, 3, 32)
    stored = np.load(tmp_path / "cifar10" / "train_images.npy")
    image, label = source.train[11]
    assert (image.numpy().transpose(1, 2, 0) == stored[11]).all()
    assert label == 1
    np.testing.assert_allclose(source.mean, (stored / 255.0).mean((0, 1, 2)), rtol=1e-5)
    assert (source.shift, source.mirror, source.are_digits) == (4, True, False)
    image, _ = source.val_as_is()[3]
    assert torch.equal(image, source.val[3][0])


@pytest.mark.parametrize(
    ("images", "classes", "words"),
    [
        (
            np.zeros((4, 32, 32, 3)),
            None,
            r"train_images.npy must hold uint8 images .* got float64 of \(4, 32, 32, 3\)",
        ),
        (np.zeros((4, 3, 32, 32), np.uint8), None, r"of shape \(N, S, S, 3\), got uint8 of \(4, 3, 32, 32\)"),
        (None, np.arange(7), r"train_labels.npy must hold a class from 0 for each of the 40 images .* int64 of \(7,\)"),
        (None, np.zeros(40), r"got float64 of \(40,\)"),
        (np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 1, 2, -1]), r"a class from 0 for each"),
    ],
)
def test_arrays_that_are_not_such_images(tmp_path, images, classes, words):
    with pytest.raises(ValueError, match=words):
        load(cifar10(tmp_path, images, classes), data="cifar10")


@pytest.mark.parametrize("content", [b"", b"an array"])
def test_a_damaged_array_is_named(tmp_path, content):
    (cifar10(tmp_path) / "cifar10" / "test_labels.npy").write_bytes(content)
    with pytest.raises(ValueError, match="test_labels.npy must be an array that NumPy saved"):
        load(tmp_path, data="cifar10")


def fashion_mnist(path):
    folder = path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, number in (("train", 30), ("t10k", 10)):
        images = np.random.default_rng(0).integers(0, 256, (number, 28, 28), dtype=np.uint8)
        header = struct.pack(">iiii", 0x803, number, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        classes = (np.arange(number) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, number) + classes.tobytes())
    return folder


def test_fashion_mnist_as_torchvision_has_it(tmp_path):
    fashion_mnist(tmp_path)
    source = load(tmp_path, data="fashion-mnist")
    assert (len(source.train), len(source.val), source.classes, source.channels, source.side) == (30, 10, 10, 1, 28)
    assert source.train[0][0].shape == (1, 28, 28)
    assert labels(source.val) == list(range(10))


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_absent_data_name_the_ways_to_them(tmp_path, name):
    for folder in (tmp_path, tmp_path / "not there"):
        with pytest.raises(ValueError, match=f"--data-dir must .* all files of {name}, got .*or add --download"):
            load(folder, data=name)


def test_a_damaged_file_of_torchvision(tmp_path):
    file = fashion_mnist(tmp_path) / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="must be a folder with all files of fashion-mnist"):
        load(tmp_path, data="fashion-mnist")


def test_a_download_that_fails_says_so(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("Error downloading train-images")

    monkeypatch.setattr(arrays.datasets.FashionMNIST, "download", refuse)
    with pytest.raises(ValueError, match="cannot get fashion-mnist into the folder .*new: Error downloading train-im"):
        data.load(Settings(data="fashion-mnist"), tmp_path / "new", download=True)


def test_a_download_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays.datasets.FashionMNIST, "download", lambda self: None)
    fashion_mnist(tmp_path)
    assert len(data.load(Settings(data="fashion-mnist"), tmp_path, download=True).train) == 30
