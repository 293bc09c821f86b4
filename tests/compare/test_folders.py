"""Data sets of image files: the split, and folders that are none."""

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from helpers.image_sets import folder, images, labels, row
from torch_dropblock.compare.image_file import UnreadableImageError


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
        (lambda p: None, "must hold a folder of images for each class; it holds no folder"),
        (lambda p: images(p / "train", ("a", "b")), "must hold train and val, or a folder for each class"),
        (lambda p: images(p / "val", ("a", "b")), "must hold train and val"),
        (
            lambda p: (images(p / "train", ("a", "b")), images(p / "val", ("a", "c"))),
            "train and val of .* must have the same classes; in one: b, c",
        ),
        (lambda p: (images(p, ("a", "b")), (p / "c").mkdir()), "for each class; without an image: c"),
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
    with pytest.raises(ValueError, match="--data must name a folder of images, got .*nowhere, which is none"):
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


def test_parts_and_what_is_left_out_are_told_in_a_line(tmp_path):
    for part in ("Training", "Testing", "extra"):
        images(tmp_path / part, ("a", "b"))
    for i in range(1200):
        (tmp_path / "Training" / "a" / f"{i}.heic").write_bytes(b"")
    (tmp_path / "Testing" / "b" / "notes.txt").write_bytes(b"")
    source = folder(tmp_path)
    assert source.classes == 2
    assert list(source.notes) == [
        f"training on {tmp_path}/Training, validating on {tmp_path}/Testing; not used: extra",
        "left out: 1,200 .heic files, 1 .txt files",
    ]
    assert sorted(source.files) == sorted(map(str, tmp_path.glob("T*/*/*.png")))


def test_where_nothing_is_in_doubt_nothing_is_told(tmp_path):
    images(tmp_path / "train", ("a", "b"))
    images(tmp_path / "val", ("a", "b"))
    assert list(folder(tmp_path).notes) == []
