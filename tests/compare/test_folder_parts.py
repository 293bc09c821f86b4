"""Parts of a data set, under the names that people give them."""

import pytest
from PIL import Image

from torch_dropblock.compare.folder_parts import parts_of


def make(path, *folders):
    for folder in folders:
        (path / folder).mkdir(parents=True)
        Image.new("L", (4, 4)).save(path / folder / "1.png")


def make_parts(path, *names):
    make(path, *(f"{name}/{kind}" for name in names for kind in ("cat", "dog")))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("train", "valid"),
        ("train", "validation"),
        ("Training", "Testing"),
        ("Training", "Test"),
        ("TRAIN", "TEST"),
        ("Train", "Validate"),
        ("train_images", "val_images"),
        ("train-set", "test-set"),
        ("trainset", "testset"),
        ("seg_train", "seg_test"),
        ("TrainImages", "TestImages"),
        ("training_set", "test_set"),
        ("imagenet-train", "imagenet-eval"),
        ("train2017", "val2017"),
    ],
)
def test_parts_are_recognised(tmp_path, train, val):
    make_parts(tmp_path, train, val)
    found = parts_of(tmp_path)
    assert (found.train, found.val, found.left_out) == (tmp_path / train, tmp_path / val, ())


def test_of_several_to_validate_on_the_name_decides_and_the_rest_is_told(tmp_path):
    make_parts(tmp_path, "train", "test", "valid", "annotations")
    found = parts_of(tmp_path)
    assert (found.val, found.left_out) == (tmp_path / "valid", ("annotations", "test"))
    make_parts(tmp_path, "train_extra")
    assert parts_of(tmp_path).train == tmp_path / "train"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train_a", "train_b", "val"), "must hold one folder to train on, got train_a, train_b; move the others away"),
        (("train", "val", "valid"), "must hold one folder to validate on, got val, valid; move the others away"),
        (("train", "cats"), "must hold train and val, or a folder for each class; it holds one of the two only: train"),
        (("Testing", "cats"), "it holds one of the two only: Testing"),
    ],
)
def test_parts_in_doubt_are_refused(tmp_path, names, words):
    make_parts(tmp_path, *names)
    with pytest.raises(ValueError, match=words):
        parts_of(tmp_path)


@pytest.mark.parametrize("names", [("part1", "part2"), ("fold_a", "fold_b", "fold_c"), ("lernen", "pruefen")])
def test_parts_of_unknown_names_are_no_classes(tmp_path, names):
    make_parts(tmp_path, *names)
    with pytest.raises(ValueError, match=rf"{names[0]}.* hold no images but the same folders \(cat, dog\)"):
        parts_of(tmp_path)


@pytest.mark.parametrize("names", [("train_images", "test_images"), ("train", "test1"), ("TRAIN", "VAL")])
def test_parts_without_classes_are_no_classes(tmp_path, names):
    """They are parts, and reading them says that there is no folder for a class."""
    make(tmp_path, *names)
    found = parts_of(tmp_path)
    assert (found.train, found.val) == tuple(tmp_path / name for name in names)


@pytest.mark.parametrize(
    "classes",
    [
        ("cat", "dog"),
        ("test tube", "beaker", "freight train"),
        ("cat/images", "dog/images"),  # as Tiny ImageNet has it
        ("cat/indoor", "cat/outdoor", "dog/indoor", "dog/park"),
        ("trained", "untrained"),
        ("validated", "contested"),
    ],
)
def test_classes_are_no_parts(tmp_path, classes):
    make(tmp_path, *classes)
    assert (parts_of(tmp_path).train, parts_of(tmp_path).val) == (tmp_path, None)


def test_a_folder_around_them_is_looked_into(tmp_path):
    make_parts(tmp_path, "chest_xray/train/train", "chest_xray/test", "__MACOSX/chest_xray/train")
    found = parts_of(tmp_path)
    assert (found.train, found.val) == (tmp_path / "chest_xray/train/train", tmp_path / "chest_xray/test")


def test_a_link_to_the_folder_itself_ends(tmp_path):
    (tmp_path / "loop").symlink_to(".")
    assert parts_of(tmp_path).train.resolve() == tmp_path
