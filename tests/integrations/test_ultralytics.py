"""Layers for YOLO: real trainings of its own network, made narrow, on a tiny synthetic data set."""

import copy
import csv
import pickle

import numpy as np
import pytest
from PIL import Image
from torch import nn

from helpers.ultralytics_apart import ultralytics_apart
from torch_dropblock import dropblock_layers, insert_dropblock
from torch_dropblock.integrations.ultralytics import DropBlockCallbacks, add_dropblock

EPOCHS, BATCHES = 4, 2
LAYERS = ("model.2", "model.4")


@pytest.fixture(scope="module")
def yolo(tmp_path_factory):
    with ultralytics_apart(tmp_path_factory.mktemp("ultralytics")):
        yield pytest.importorskip("ultralytics", reason="needs ultralytics", exc_type=ImportError)


@pytest.fixture(scope="module")
def place(yolo, tmp_path_factory):
    """A data set of noise with one box in each image, and the description of a narrow network."""
    from ultralytics.nn.tasks import yaml_model_load
    from ultralytics.utils import YAML

    place = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (place / kind / split).mkdir(parents=True)
        for i in range(8 if split == "train" else 2):
            noise = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(place / "images" / split / f"{i}.png")
            (place / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (place / "data.yaml").write_text(f"path: {place}\ntrain: images/train\nval: images/val\nnames: {{0: box}}\n")
    description = yaml_model_load("yolo11n.yaml")
    description["scales"]["n"] = [0.33, 0.125, 1024]
    YAML.save(place / "yolo11n-narrow.yaml", {k: v for k, v in description.items() if k not in ("scale", "yaml_file")})
    return place


class InterruptError(Exception):
    pass


def insert(network):
    insert_dropblock(network, LAYERS, block_size=3, keep_prob=0.7)


def train(yolo, place, name, *, stop_after=None, resume=False):
    """Train; return the model, the callbacks, and what was seen at each batch."""
    last = place / name / "weights" / "last.pt"
    model = yolo.YOLO(last if resume else place / "yolo11n-narrow.yaml", verbose=False)
    callbacks = add_dropblock(model, insert)
    seen = {"strengths": [], "ema": []}

    def watch(trainer):
        seen["strengths"].append(callbacks.schedule.strength)
        seen["ema"].append(len(dropblock_layers(trainer.ema.ema)))
        if stop_after == trainer.epoch:
            raise InterruptError

    model.add_callback("on_train_batch_start", watch)
    first = {"data": str(place / "data.yaml"), "epochs": EPOCHS, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
    first |= {"plots": False, "val": False, "verbose": False, "amp": False, "optimizer": "SGD"}
    first |= {"project": str(place), "name": name, "exist_ok": True}
    arguments = {"resume": True} if resume else first
    try:
        model.train(**arguments)
    except InterruptError:
        assert stop_after is not None
    return model, callbacks, seen


@pytest.fixture(scope="module")
def whole(yolo, place):
    return train(yolo, place, "whole")


def test_the_network_that_is_trained_has_the_layers(whole):
    _, callbacks, seen = whole
    assert tuple(callbacks.layers) == LAYERS
    assert seen["strengths"] == [i / (EPOCHS * BATCHES) for i in range(EPOCHS * BATCHES)]
    assert callbacks.schedule.strength == 1.0


def rows(place, name):
    with (place / name / "results.csv").open() as file:
        return [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]


def test_the_log_has_what_was_dropped(whole, place):
    names = [
        f"dropblock/{kind}{name}" for kind in ("keep_prob", "dropped") for name in ("", *(f"/{n}" for n in LAYERS))
    ]
    table = rows(place, "whole")
    assert len(table) == EPOCHS
    for epoch, row in enumerate(table):
        assert [key for key in row if key.startswith("dropblock/")] == names
        strength = (epoch * BATCHES + 1) / (EPOCHS * BATCHES)  # at the last batch
        assert float(row["dropblock/keep_prob"]) == pytest.approx(1 - 0.3 * strength, rel=1e-4)
        assert float(row["dropblock/dropped"]) == pytest.approx(0.3 * strength, abs=0.12)
        assert 0 < float(row["dropblock/dropped/model.2"]) < 0.6


def test_no_checkpoint_no_validation_and_no_export_has_layers(whole, place):
    model, callbacks, seen = whole
    assert set(seen["ema"]) == {0}
    assert not dropblock_layers(model.model)
    assert not dropblock_layers(callbacks._network)
    for name in ("best.pt", "last.pt"):
        assert b"torch_dropblock" not in (place / "whole" / "weights" / name).read_bytes()
    assert not dropblock_layers(copy.deepcopy(model.model).fuse(verbose=False))


def test_resumed_it_goes_on_with_the_strength_of_its_step(whole, yolo, place):
    """The weights cannot be the same: Ultralytics resumes from its EMA in half precision, and saves no random state."""
    train(yolo, place, "stopped", stop_after=2)
    before = rows(place, "stopped")
    assert len(before) == 2
    _, callbacks, seen = train(yolo, place, "stopped", resume=True)
    assert seen["strengths"] == [i / (EPOCHS * BATCHES) for i in range(2 * BATCHES, EPOCHS * BATCHES)]
    assert callbacks.schedule.strength == 1.0
    keep_probs = [row["dropblock/keep_prob"] for row in rows(place, "stopped")]
    assert keep_probs == [row["dropblock/keep_prob"] for row in rows(place, "whole")]
    assert set(seen["ema"]) == {0}


def test_an_ema_that_is_made_again_loses_the_layers_and_a_repeated_epoch_repeats_its_strength():
    """As after NaN, and after a batch that does not fit into memory."""

    class Trainer:
        def __init__(self, model, batches):
            self.model, self.train_loader, self.start_epoch, self.epochs, self.epoch = model, range(batches), 0, 4, 0
            self.ema = type("Ema", (), {"ema": copy.deepcopy(model)})
            self.lr = {}

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    trainer = Trainer(network, 2)
    callbacks = DropBlockCallbacks(lambda net: insert_dropblock(net, "0", keep_prob=0.8), "linear")
    callbacks.on_pretrain_routine_end(trainer)
    for _ in range(2):
        callbacks.on_train_epoch_start(trainer)
        first = callbacks.schedule
        callbacks.on_train_batch_end(trainer)
        callbacks.on_train_batch_end(trainer)
        callbacks.on_train_epoch_end(trainer)
        trainer.epoch += 1
    assert callbacks.schedule is first
    assert np.isnan(trainer.lr["dropblock/dropped"])  # nothing ran, and the columns stay
    trainer.ema.ema = copy.deepcopy(network)
    trainer.epoch = 1
    callbacks.on_train_epoch_start(trainer)
    assert not dropblock_layers(trainer.ema.ema)
    assert (callbacks.schedule.steps, callbacks.schedule.total_steps) == (2, 8)
    trainer.train_loader = range(4)
    callbacks.on_train_epoch_start(trainer)
    assert (callbacks.schedule.steps, callbacks.schedule.total_steps) == (4, 16)
    callbacks.teardown(trainer)
    assert not dropblock_layers(network)


def test_a_copy_has_the_options_alone():
    """Ultralytics pickles the callbacks for the processes of several GPUs."""
    callbacks = DropBlockCallbacks(insert, "cosine", grow_blocks=True)
    callbacks._network = nn.Linear(1, 1)
    event = pickle.loads(pickle.dumps(callbacks.on_train_epoch_end))
    assert (event.__self__.insert, event.__self__.curve, event.__self__._network) == (insert, "cosine", None)
    assert event.__self__.grow_blocks


def test_bad_arguments():
    class Model:
        def add_callback(self, event, function):
            raise AssertionError

    with pytest.raises(ValueError, match="curve must be one of"):
        add_dropblock(Model(), insert, curve="cos")
    with pytest.raises(TypeError, match="insert must be a function that puts layers into a network, got 'model.8'"):
        add_dropblock(Model(), "model.8")
    with pytest.raises(TypeError, match="model must be a model of Ultralytics such as YOLO, got Linear"):
        add_dropblock(nn.Linear(1, 1), insert)
