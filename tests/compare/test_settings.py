"""What all rows have in common: presets, checks, and what differs."""

import dataclasses
import json
import math

import pytest

from torch_dropblock.compare.settings import MILESTONES, PRESETS, WARMUP, Settings, settings_of


def test_without_a_word_it_is_the_quick_preset_for_digits_and_the_standard_one_for_the_rest():
    assert settings_of(None) == Settings(data="digits", model="small", epochs=6, batch_size=64)
    assert settings_of(None, data="cifar10") == Settings(data="cifar10", model="small", epochs=30, batch_size=128)
    assert settings_of(None, data="folder:x").model == "resnet50"


def test_the_papers_recipe():
    """Section 4.1, and the learning rate of its code: 0.1 for 256 images."""
    paper = settings_of("paper", data="folder:imagenet")
    assert (paper.model, paper.epochs, paper.batch_size, paper.decay) == ("resnet50", 270, 1024, "steps")
    assert (paper.weight_decay, paper.keep_prob, paper.block_size, paper.image_size) == (1e-4, 0.9, 7, 224)
    assert paper.highest_learning_rate == pytest.approx(0.4)
    assert paper.curve == "linear"
    assert [270 * part for part in MILESTONES] == pytest.approx([125, 200, 250])
    assert pytest.approx(5) == 270 * WARMUP


def test_what_is_chosen_goes_before_the_preset():
    chosen = settings_of("paper", data="folder:x", model="resnet18", epochs=3, learning_rate=None)
    assert (chosen.model, chosen.epochs, chosen.learning_rate) == ("resnet18", 3, 0.1)
    assert settings_of("quick", data="cifar10").epochs == PRESETS["quick"]["epochs"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "--epochs must be an int of at least 1, got 0"),
        ({"batch_size": -1}, "--batch-size must be an int of at least 1, got -1"),
        ({"image_size": 0}, "--image-size must be an int of at least 1, got 0"),
        ({"block_size": 0}, "--block-size must be an int of at least 1, got 0"),
        ({"limit_train": 0}, "--limit-train must be an int of at least 1, got 0"),
        ({"learning_rate": 0.0}, "--learning-rate must be a finite number above 0, got 0.0"),
        ({"learning_rate": math.nan}, "--learning-rate must be a finite number above 0, got nan"),
        ({"weight_decay": -0.1}, "--weight-decay must be a finite number at least 0, got -0.1"),
        ({"keep_prob": 1.1}, r"--keep-prob must be a number in \[0, 1\], got 1.1"),
        ({"rate": "exactly"}, "--rate must be one of exact, paper, got 'exactly'"),
        ({"decay": "linear"}, "--decay must be one of cosine, steps, got 'linear'"),
        ({"precision": "fp8"}, "--precision must be one of 32-true, .*, got 'fp8'"),
        ({"curve": "sine"}, "--curve must be one of linear, cosine, constant, step, got 'sine'"),
        ({"validate_every": 4}, "--validate-every must divide the 30 epochs, got 4"),
    ],
)
def test_values_out_of_range(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**changes)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="--preset must be one of quick, standard, paper, got 'slow'"):
        settings_of("slow")


def test_a_slash_behind_a_folder_says_nothing():
    assert settings_of(None, data="folder:photos/cats/").data == "folder:photos/cats"
    assert settings_of(None, data="folder:/").data == "folder:/"


def test_differences_name_the_setting_and_both_values():
    mine = Settings(epochs=3, block_size=None)
    written = json.loads(json.dumps(dataclasses.asdict(mine)))
    assert mine.differences(written) == []
    assert mine.differences(written | {"epochs": 4, "block_size": 7}) == [
        "--epochs 4, and now 3",
        "--block-size 7, and now None",
    ]
