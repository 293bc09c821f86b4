"""Images: where they come from, the split, and what a row does to them."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from torch_dropblock.compare import data
from torch_dropblock.compare.image_folder import UnreadableImageError
from torch_dropblock.compare.rows import parsed
from torch_dropblock.compare.settings import Settings


def load(path, **settings):
    return data.load(Settings(**settings), path)


def row(name):
    return parsed([name], Settings())[-1]


def labels(dataset):
    return [label for _, label in dataset]


# --- arrays ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.load(Settings(), None)


def test_digits(digits):
    assert (len(digits.train), len(digits.val), digits.classes, digits.channels, digits.side) == (1437, 360, 10, 1, 8)
    image, label = digits.train_of(row("baseline"))[0]
    assert (image.shape, image.dtype, type(label)) == ((1, 8, 8), torch.uint8, int)
    assert digits.policy == v2.AutoAugmentPolicy.SVHN
    assert not any(isinstance(step, v2.RandomHorizontalFlip) for step in digits.place)


def test_the_split_is_always_the_same_and_has_the_same_share_of_each_class(digits):
    again = data.load(Settings(), None)
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(again.val.images, digits.val.images)
    train, val = (np.bincount(labels(part)) for part in (digits.train, digits.val))
    assert np.abs(val - 0.2 * (train + val)).max() < 1


def test_no_image_is_in_both_parts(digits):
    train, val = ({image.numpy().tobytes() for image, _ in part} for part in (digits.train, digits.val))
    assert len(train & val) == 0


def test_limit_train_is_always_the_same_images_of_all_classes(digits):
    some, again = (load(None, limit_train=100) for _ in range(2))
    assert torch.equal(torch.stack([i for i, _ in some.train]), torch.stack([i for i, _ in again.train]))
    counts = np.bincount(labels(some.train))
    assert (counts.sum(), counts.min(), counts.max()) == (100, 10, 10)
    assert torch.equal(some.val.images, digits.val.images)
    assert len(load(None, limit_train=1437).train) == 1437


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (9, "limit_train must be from 10, one image of each class, to all 1437 of them, got 9"),
        (1438, "got 1438"),
        (1430, "limit_train 1430: 1437 images of 10 classes cannot be split in two parts"),
    ],
)
def test_limits_that_are_not_possible(limit, words):
    with pytest.raises(ValueError, match=words):
        load(None, limit_train=limit)


def test_mean_and_std_are_those_of_the_training_images(digits):
    pixels = digits.train.images.double() / 255
    assert digits.mean == pytest.approx([pixels.mean().item()])
    assert digits.std == pytest.approx([pixels.std().item()])


def cifar10(path, images=None, classes=None):
    folder = path / "cifar10"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, number in (("train", 40), ("test", 20)):
        some = generator.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8) if images is None else images
        np.save(folder / f"{part}_images.npy", some)
        np.save(folder / f"{part}_labels.npy", np.arange(number) % 10 if classes is None else classes)
    return path


def test_cifar10_from_arrays(tmp_path):
    source = load(cifar10(tmp_path), data="cifar10")
    assert (len(source.train), len(source.val), source.classes, source.channels, source.side) == (40, 20, 10, 3, 32)
    stored = np.load(tmp_path / "cifar10" / "train_images.npy")
    image, label = source.train[11]
    assert (image.numpy().transpose(1, 2, 0) == stored[11]).all()
    assert label == 1
    np.testing.assert_allclose(source.mean, (stored / 255.0).mean((0, 1, 2)), rtol=1e-5)
    assert any(isinstance(step, v2.RandomHorizontalFlip) for step in source.place)
    image, _ = source.val_as_is()[3]
    assert torch.equal(image, source.val[3][0])


@pytest.mark.parametrize(
    ("images", "classes", "words"),
    [
        (
            np.zeros((4, 32, 32, 3)),
            None,
            r"train_images.npy must hold uint8 images .* holds float64 of \(4, 32, 32, 3\)",
        ),
        (np.zeros((4, 3, 32, 32), np.uint8), None, r"of shape \(N, S, S, 3\), it holds uint8 of \(4, 3, 32, 32\)"),
        (None, np.arange(7), r"train_labels.npy must hold a class from 0 for each of the 40 images .* int64 of \(7,\)"),
        (None, np.zeros(40), r"it holds float64 of \(40,\)"),
        (np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 1, 2, -1]), r"a class from 0 for each"),
    ],
)
def test_arrays_that_are_not_such_images(tmp_path, images, classes, words):
    with pytest.raises(ValueError, match=words):
        load(cifar10(tmp_path, images, classes), data="cifar10")


@pytest.mark.parametrize("content", [b"", b"an array"])
def test_a_damaged_array_is_named(tmp_path, content):
    (cifar10(tmp_path) / "cifar10" / "test_labels.npy").write_bytes(content)
    with pytest.raises(ValueError, match="test_labels.npy is no array of NumPy, or a damaged one"):
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
        with pytest.raises(ValueError, match=f"does not hold {name}.*--data-dir names where it is, --download gets it"):
            load(folder, data=name)


def test_a_damaged_file_of_torchvision(tmp_path):
    file = fashion_mnist(tmp_path) / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="does not hold fashion-mnist, or not whole"):
        load(tmp_path, data="fashion-mnist")


def test_a_download_that_fails_says_so(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("Error downloading train-images")

    monkeypatch.setattr(data.datasets.FashionMNIST, "download", refuse)
    with pytest.raises(ValueError, match="cannot get fashion-mnist into the folder .*new: Error downloading train-im"):
        data.load(Settings(data="fashion-mnist"), tmp_path / "new", download=True)


def test_a_download_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data.datasets.FashionMNIST, "download", lambda self: None)
    fashion_mnist(tmp_path)
    assert len(data.load(Settings(data="fashion-mnist"), tmp_path, download=True).train) == 30


def test_unknown_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="data must be digits, fashion-mnist, cifar10 or folder:DIR, got 'imagenet'"):
        load(tmp_path, data="imagenet")


# --- folders -----------------------------------------------------------------------------------------------------


def images(path, classes, number=5, kind="png"):
    for place, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(number):
            picture = Image.new("RGB", (40 + 10 * place, 50), (50 * place, 10 * i, 0))
            picture.save(path / name / f"{i}.{kind}")
    return path


def folder(path, **settings):
    return load(path, data=f"folder:{path}", image_size=32, **settings)


def test_a_folder_with_a_folder_for_each_class(tmp_path):
    source = folder(images(tmp_path, ("cat", "dog"), 10))
    assert (len(source.train), len(source.val), source.classes, source.channels) == (16, 4, 2, 3)
    assert sorted(labels(source.val)) == [0, 0, 1, 1]
    again = folder(tmp_path)
    assert (again.train.indices, again.val.indices) == (source.train.indices, source.val.indices)
    assert not set(source.train.indices) & set(source.val.indices)
    assert (source.mean, source.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["val", "test", "valid"])
def test_a_folder_with_a_part_to_validate_on(tmp_path, name):
    images(tmp_path / "train", ("cat", "dog"), 6)
    images(tmp_path / name, ("cat", "dog"), 3, "jpg")
    source = folder(tmp_path)
    assert (len(source.train), len(source.val)) == (12, 6)
    for dataset in (source.train_of(row("autoaugment+cutout")), source.val_as_is()):
        image, label = dataset[0]
        assert (image.shape, image.dtype, label) == ((3, 32, 32), torch.uint8, 0)
    limited = folder(tmp_path, limit_train=4)
    assert sorted(labels(limited.train)) == [0, 0, 1, 1]


def test_validation_sees_the_middle_of_an_image_at_the_papers_scale(tmp_path):
    images(tmp_path, ("a", "b"))
    resize, crop = folder(tmp_path).place_val
    assert isinstance(resize, v2.Resize)
    assert resize.size == [round(32 * 256 / 224)]
    assert isinstance(crop, v2.CenterCrop)
    assert crop.size == (32, 32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "must hold a folder of images for each class: Couldn't find any class folder"),
        (lambda p: images(p / "train", ("a", "b")), "must hold train and val, or a folder for each class"),
        (lambda p: images(p / "val", ("a", "b")), "must hold train and val"),
        (
            lambda p: (images(p / "train", ("a", "b")), images(p / "val", ("a", "c"))),
            "train and val of .* must have the same classes; in one: b, c",
        ),
        (lambda p: (images(p, ("a", "b")), (p / "c").mkdir()), "for each class: Found no valid file for the classes c"),
        (lambda p: (images(p, ("a", "b")), images(p, ("c",), 1)), "must have two images, one of them to .*: c$"),
        (lambda p: images(p, ("a", "b", "c"), 2), "6 images of 3 classes cannot be split in two parts"),
        (lambda p: images(p, ("a",)), "must have two classes or more, it has 'a' only"),
    ],
)
def test_folders_that_are_not_possible(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        folder(tmp_path)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*nowhere of images"):
        folder(tmp_path / "nowhere")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["no image", "truncated"])
def test_an_unreadable_image_is_named(tmp_path, workers, damage):
    images(tmp_path, ("a", "b"), 6, "jpg")
    for name in ("a", "b"):
        for file in (tmp_path / name).iterdir():
            file.write_bytes(b"x" if damage == "no image" else file.read_bytes()[:-100])
    loader = DataLoader(folder(tmp_path).val_as_is(), num_workers=workers)
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*\.jpg: "):
        next(iter(loader))


def test_rare_classes_are_in_each_part(tmp_path):
    for name, number in (("a", 60), ("b", 40), ("c", 2), ("d", 3)):
        images(tmp_path, (name,), number)
    source = folder(tmp_path)
    assert set(labels(source.train)) == set(labels(source.val)) == {0, 1, 2, 3}
    assert sorted([*source.train.indices, *source.val.indices]) == list(range(105))
    assert len(source.val) == 21


def test_hidden_folders_are_no_classes(tmp_path):
    images(tmp_path, ("a", "b", ".thumbnails"))
    assert folder(tmp_path).classes == 2
    images(tmp_path / "hidden", (".a", ".b"))
    with pytest.raises(ValueError, match="must hold a folder of images for each class"):
        folder(tmp_path / "hidden")


def test_some_names_are_few():
    assert data.some(list("abcde")) == "a, b, c, d, e"
    assert data.some(list("abcdefg")) == "a, b, c, d, e and 2 more"


# --- what a row does to them -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("area", "side"), [(0.25, 16), (0.1, 10), (0.5, 23)])
def test_cutout_blanks_a_square_of_the_area_with_the_mean(tmp_path, area, side):
    source = load(cifar10(tmp_path, np.full((40, 32, 32, 3), 255, np.uint8), np.arange(40) % 10), data="cifar10")
    source = data.replace(source, mean=(0.2, 0.4, 0.6), place=())
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
        source = data.replace(source, place=())
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
