"""Small data sets for the tests of `compare`: arrays and folders of images."""

import numpy as np
from PIL import Image

from torch_dropblock.compare import data
from torch_dropblock.compare.rows import parsed
from torch_dropblock.compare.settings import Settings


def load(path, **settings):
    return data.load(Settings(**settings), path)


def row(name):
    return parsed([name], Settings())[-1]


def labels(dataset):
    return [label for _, label in dataset]


def cifar10(path, images=None, classes=None):
    folder = path / "cifar10"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, number in (("train", 40), ("test", 20)):
        some = generator.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8) if images is None else images
        np.save(folder / f"{part}_images.npy", some)
        np.save(folder / f"{part}_labels.npy", np.arange(number) % 10 if classes is None else classes)
    return path


def images(path, classes, number=5, kind="png"):
    for place, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(number):
            picture = Image.new("RGB", (40 + 10 * place, 50), (50 * place, 10 * i, 0))
            picture.save(path / name / f"{i}.{kind}")
    return path


def folder(path, **settings):
    return load(path, data=f"folder:{path}", image_size=32, **settings)
