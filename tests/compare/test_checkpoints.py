"""A checkpoint that is none is named, whatever is wrong with it."""

import shutil
import signal

import pytest
import torch

from helpers.studies import Heard, Stops, study


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    path = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        study(path, listener=Stops(4)).run()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return path


@pytest.mark.parametrize("damage", ["empty", "cut short", "text", "foreign", "other shapes", "older", "no optimizer"])
def test_a_checkpoint_that_is_none_is_named(stopped, tmp_path, damage):
    path = shutil.copytree(stopped, tmp_path / "study")
    (file,) = path.rglob("last.ckpt")
    if damage == "foreign":
        torch.save({"weights": torch.ones(3)}, file)
    elif damage == "older":
        saved = torch.load(file, weights_only=True)
        del saved["measured"]["seconds"]
        torch.save(saved, file)
    elif damage == "no optimizer":
        saved = torch.load(file, weights_only=True)
        del saved["optimizer_states"]
        torch.save(saved, file)
    elif damage == "other shapes":
        saved = torch.load(file, weights_only=True)
        name, value = saved["state_dict"].popitem()
        torch.save(saved | {"state_dict": {**saved["state_dict"], name: value.repeat(2)}}, file)
    else:
        file.write_bytes({"empty": b"", "cut short": file.read_bytes()[:5000], "text": b"x" * 100}[damage])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged, or of other images; delete it to train the run from"):
        study(path).run()


def test_without_its_checkpoint_a_run_starts_again(stopped, tmp_path):
    path = shutil.copytree(stopped, tmp_path / "study")
    (file,) = path.rglob("last.ckpt")
    file.unlink()
    heard = Heard()
    study(path, listener=heard).run()
    assert heard.started == [("baseline", 0, 0)]
