"""Folders of images: what is a class, which files count, each once, and what is left out."""

import pytest
from PIL import Image

from torch_dropblock.compare.image_folder import Reader, folders_in, holds_images, some


def image(*path):
    file = path[0].joinpath(*path[1:])
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 5)).save(file)
    return file


def read(path):
    reader = Reader()
    found = reader.read(path)
    return {name: [f for f, t in zip(found.files, found.targets, strict=True) if t == number] for number, name in
            enumerate(found.classes)}, dict(reader.left_out)  # fmt: skip


HIDDEN = [".ipynb_checkpoints", "@eaDir", ".Trash-1000", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".AppleDouble"]


def test_classes_are_folders_and_images_are_in_colour(tmp_path):
    files = [image(tmp_path, *place) for place in (("b", "1.png"), ("a", "2.png"), ("a", "0", "1.png"))]
    found = Reader().read(tmp_path)
    # ordered by folder, then by name
    assert (found.classes, found.files, found.targets) == (
        ["a", "b"],
        [str(files[1]), str(files[2]), str(files[0])],
        [0, 0, 1],
    )
    picture, label = found[2]
    assert (len(found), picture.mode, picture.size, label) == (3, "RGB", (4, 5), 1)


@pytest.mark.parametrize("name", HIDDEN)
def test_what_programs_made_is_neither_a_class_nor_in_one(tmp_path, name):
    kept = [str(image(tmp_path, folder, "1.png")) for folder in ("a", "b")]
    image(tmp_path, name, "1.png")
    image(tmp_path, "a", name, "1.png")
    image(tmp_path, "a", "more", name, "1.png")
    for hidden in ("._1.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "a" / hidden).write_bytes(b"no image")
    assert read(tmp_path) == ({"a": kept[:1], "b": kept[1:]}, {})


def test_names_with_signs_are_classes(tmp_path):
    for name in ("#", "@", "$", "_"):
        image(tmp_path, name, "1.png")
    assert Reader().read(tmp_path).classes == ["#", "$", "@", "_"]


def test_what_is_left_out_is_counted(tmp_path):
    for name in ("a.gif", "b.JFIF", "c.tga"):
        assert image(tmp_path, "a", name if name != "b.JFIF" else "b.jfif")
    (tmp_path / "a" / "b.jfif").rename(tmp_path / "a" / "b.JFIF")
    image(tmp_path, "loose.png")
    for file in ("a/1.heic", "a/2.HEIC", "a/labels.txt", "a/README", "classes.csv"):
        (tmp_path / file).write_bytes(b"")
    found, left_out = read(tmp_path)
    assert [file.rpartition("/")[2] for file in found["a"]] == ["a.gif", "b.JFIF", "c.tga"]
    assert left_out == {
        ".heic files": 2,
        ".txt files": 1,
        "files without a suffix": 1,
        ".csv files": 1,
        "images outside of the classes' folders": 1,
    }


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [".", "..", "../..", "../../..", "/"])
def test_a_link_to_a_folder_around_it_is_not_followed(tmp_path, to):
    root = tmp_path / "set" / "train"
    files = [str(image(root, name, "more", "1.png")) for name in ("a", "b")]
    image(tmp_path, "set", "val", "a", "1.png")
    (root / "a" / "loop").symlink_to(to, target_is_directory=True)
    assert read(root) == ({"a": files[:1], "b": files[1:]}, {"links to a folder around them": 1})


def test_links_that_loop_outside_end_too(tmp_path):
    outside = image(tmp_path, "outside", "1.png").parent
    (outside / "again").symlink_to(outside)
    image(tmp_path, "set", "a", "1.png")
    (tmp_path / "set" / "a" / "linked").symlink_to(outside)
    (tmp_path / "set" / "a" / "twice").symlink_to(outside)
    (tmp_path / "set" / "a" / "itself").symlink_to("itself")
    found, left_out = read(tmp_path / "set")
    assert len(found["a"]) == 2
    assert left_out == {
        "links to a folder around them": 1,
        "links to a folder of the same class": 1,
        "files without a suffix": 1,
    }


def test_classes_and_files_may_be_links(tmp_path):
    store = image(tmp_path, "store", "1.png")
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.png").symlink_to(store)
    (tmp_path / "set" / "c").symlink_to(store.parent)
    found, left_out = read(tmp_path / "set")
    assert ({name: len(files) for name, files in found.items()}, left_out) == ({"a": 1, "b": 1, "c": 1}, {})


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_of_two_classes_is_refused(tmp_path, first):
    image(tmp_path, "cat", "1.png")
    image(tmp_path, "dog", "1.png")
    (tmp_path / "cat" / "more").symlink_to("../dog") if first else (tmp_path / "dog" / "more").symlink_to("../cat")
    with pytest.raises(ValueError, match=r"folders must belong to one class of one part each, got .* remove the link"):
        Reader().read(tmp_path)


def test_a_folder_of_two_parts_is_refused(tmp_path):
    for part in ("train", "val"):
        image(tmp_path, part, "a", "1.png")
    (tmp_path / "train" / "a" / "more").symlink_to(tmp_path / "val" / "a")
    reader = Reader()
    reader.read(tmp_path / "train")
    with pytest.raises(ValueError, match=r"folders must belong to one class of one part each, got .*/val/a, which"):
        reader.read(tmp_path / "val")


def test_folders_and_images_in_a_folder(tmp_path):
    image(tmp_path, "a", "b", "1.png")
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert folders_in(tmp_path) == [tmp_path / "a"]
    assert not holds_images(tmp_path / "a")
    assert holds_images(tmp_path / "a" / "b")


def test_some_names_are_few():
    assert some(list("abcde")) == "a, b, c, d, e"
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more"
