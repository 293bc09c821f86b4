"""A study from its first run to its last: in this process, and as a command that is killed, stopped and spread."""

import dataclasses
import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from helpers import studies
from helpers.command import call, complaint
from helpers.studies import Heard, Stops, finish, free_port, results, start, study, wait_for
from torch_dropblock.compare import data, networks
from torch_dropblock.compare.image_file import UnreadableImageError
from torch_dropblock.compare.measures import images, uncertainty
from torch_dropblock.compare.measures.choice import MEASURES
from torch_dropblock.compare.progress import StudyProgress
from torch_dropblock.compare.rows import Row
from torch_dropblock.compare.settings import Settings
from torch_dropblock.compare.study import _Reporter

NAMES = "dropblock+cutout"
ALL = [(row, seed) for seed in range(2) for row in ("baseline", NAMES)]


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    """Use one thread, and measure with few passes and few other images."""
    with studies.one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "PASSES", 2)
        patch.setattr(images, "MOST_PIECES", 20)
        patch.setattr(images, "MOST", 100)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two rows with two seeds, which nothing has interrupted, and what was heard of them."""
    path = tmp_path_factory.mktemp("whole")
    heard = Heard()
    study(path, [NAMES], 2, heard, save_weights=True).run()
    return path, heard


# --- in this process -------------------------------------------------------------------------------------------------


def test_all_runs_are_made_and_told(whole):
    path, heard = whole
    assert list(results(path)) == heard.ended == [(row, seed) for row, seed, _ in heard.started] == ALL
    assert heard.steps == study(path, [NAMES], 2).steps_of_a_run * 4 == 4 * 2 * 3
    assert not (path / "unfinished").exists()


def test_the_machine_is_that_of_the_trainer(tmp_path, monkeypatch):
    """Lightning moves a network back to the CPU when it has trained it."""
    monkeypatch.setattr("torch_dropblock.compare.study.machine", lambda device: {"processor": device})
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda:3")), world_size=1)
    run = SimpleNamespace(
        row=Row("baseline"), seed=0, curves={}, step_seconds=[1.0], seconds=1.0, device=torch.device("cpu")
    )
    assert study(tmp_path)._result(run, trainer)["machine"]["processor"] == "cuda:3"


def test_a_line_says_how_the_run_went(whole):
    path, _ = whole
    line = json.loads((path / "results.jsonl").read_text().splitlines()[-1])
    assert {"row": NAMES, "seed": 1, "processes": 1}.items() <= line.items()
    assert line["top1"] == line["curves"]["top1"][-1][1]
    assert line["train_loss"] == line["curves"]["train_loss"][-1][1]
    assert 0 < line["step_ms"] * 6 / 1000 < line["seconds"]
    assert {"processor", "torch", "torch-dropblock", "lightning"} <= set(line["machine"])


def test_weights_are_those_that_were_validated(whole):
    path, _ = whole
    assert len(list((path / "weights").iterdir())) == 4
    wanted = studies.settings()
    check_weights(path, studies.source(wanted), "small", "baseline-seed1.pt", ("baseline", 1))


def check_weights(path, source, model, file, run):
    network = networks.build(model, source.classes, source.channels, source.side).eval()
    network.load_state_dict(torch.load(path / "weights" / file, weights_only=True))
    images, labels = next(iter(DataLoader(source.val_as_is(), len(source.val))))
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) * 255 for value in (source.mean, source.std))
    with torch.inference_mode():
        right = network((images - mean) / std).argmax(1) == labels
    assert right.double().mean().item() == pytest.approx(results(path)[run]["top1"], abs=1e-6)


def test_finished_runs_are_left_alone_and_rows_and_seeds_can_be_added(whole, tmp_path):
    path = shutil.copytree(whole[0], tmp_path / "copy")
    before = (path / "results.jsonl").read_text()
    heard = Heard()
    study(path, [NAMES], 2, heard).run()
    assert heard.started == []
    assert (path / "results.jsonl").read_text() == before
    more = study(path, ["dropout", NAMES], 3, heard)
    assert [(row.name, seed) for row, seed in more.unfinished] == [
        ("dropout", 0),
        ("dropout", 1),
        ("baseline", 2),
        ("dropout", 2),
        (NAMES, 2),
    ]
    more.run()
    assert more.unfinished == []
    assert (path / "results.jsonl").read_text().startswith(before)


def test_a_run_depends_on_no_other(whole, tmp_path):
    study(tmp_path, [NAMES], 2).run()
    shutil.rmtree(tmp_path / "unfinished", ignore_errors=True)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join(lines[1:]) + "\n")
    study(tmp_path, [NAMES], 2).run()
    assert results(tmp_path) == results(whole[0])


def test_an_interrupt_keeps_what_is_there_and_the_study_goes_on_from_the_last_epoch(whole, tmp_path):
    path = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        study(path, [NAMES], 2, Stops(6 + 4)).run()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which Lightning ignores from then on
    assert list(results(path)) == ALL[:1]
    heard = Heard()
    moved = path.rename(tmp_path / "moved")
    study(moved, [NAMES], 2, heard).run()
    assert heard.started == [(NAMES, 0, 3), ("baseline", 1, 0), (NAMES, 1, 0)]
    assert heard.steps == 3 + 6 + 6
    assert results(moved) == results(whole[0])


def test_a_run_whose_training_had_ended_when_it_was_killed(whole, tmp_path, monkeypatch):
    def killed(result):
        raise KeyboardInterrupt

    first = study(tmp_path)
    monkeypatch.setattr(first.records, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    heard = Heard()
    study(tmp_path, listener=heard).run()
    assert (heard.steps, heard.ended) == (0, [("baseline", 0)])
    assert results(tmp_path)["baseline", 0] == results(whole[0])["baseline", 0]
    assert not (tmp_path / "unfinished").exists()


class StopsMeasuring(Heard):
    def measure_starts(self, row, seed, measure):
        super().measure_starts(row, seed, measure)
        if len(self.measured) == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One row and the baseline with all measures, stopped while the first is measured; what was heard after it."""
    path = tmp_path_factory.mktemp("measured")
    with pytest.raises(KeyboardInterrupt):
        study(path, [NAMES], listener=StopsMeasuring(), measures=MEASURES).run()
    assert results(path) == {}
    heard = Heard()
    study(path, [NAMES], listener=heard, measures=MEASURES).run()
    return path, heard


def test_a_run_that_was_killed_while_it_was_measured_is_not_trained_again(measured, whole):
    path, heard = measured
    assert heard.steps == 6  # of the second run
    assert heard.measured == [(row, 0, name) for row in ("baseline", NAMES) for name in MEASURES]
    for run, result in results(path).items():
        measures = result.pop("measures")
        assert list(measures) == list(MEASURES)
        assert result == results(whole[0])[run]
        assert measures["occlusion"]["curve"][0][1] == pytest.approx(result["top1"], abs=0.15)  # of 90 of the 360
        assert measures["calibration"]["nll"] == pytest.approx(result["loss"], rel=0.2)
        assert measures["uncertainty"]["passes"] == (2 if run[0] == NAMES else 1)


def test_measures_can_be_added_to_runs_whose_weights_were_saved(measured, whole, tmp_path):
    path = shutil.copytree(whole[0], tmp_path / "copy")
    (path / "weights" / "baseline-seed1.pt").unlink()
    heard = Heard()
    first = study(path, [NAMES], 2, heard, measures=["parts"])
    assert [(row.name, seed) for row, seed in first.unfinished] == [ALL[0], ALL[1], ALL[3]]
    first.run()
    more = study(path, [NAMES], 2, heard, measures=list(MEASURES))
    more.run()
    assert (heard.started, more.unfinished) == ([], [])
    assert list(results(path)) == ALL
    assert "measures" not in results(path)["baseline", 1]
    for run, result in results(measured[0]).items():
        assert results(path)[run] == result
    assert len(heard.measured) == 3 * len(MEASURES)


@pytest.mark.parametrize("content", [b"", "of another network"])
def test_damaged_weights_are_named(whole, tmp_path, content):
    path = shutil.copytree(whole[0], tmp_path / "copy")
    file = path / "weights" / "baseline-seed0.pt"
    if content:
        torch.save(networks.build("resnet18", 10, 1, 8).state_dict(), file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match="baseline-seed0.pt is damaged, or of another network; delete it to leave"):
        study(path, measures=["parts"]).run()


def test_other_images_than_those_of_the_runs_there_are_refused(tmp_path):
    study(tmp_path).run()
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text(line.replace('"train": 150', '"train": 1500') + "\n")
    with pytest.raises(ValueError, match="made with other images, 1,500 to train on .*, and now it is 150 to train on"):
        study(tmp_path)


def test_a_run_that_another_command_trains_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_dropblock.compare.study.PATIENCE", 0.01)
    heard = Heard()
    mine = study(tmp_path, ["cutout"], listener=heard)
    with study(tmp_path).records.claimed(Row("baseline"), 0):
        mine.run()
        assert (heard.others, heard.ended) == ([("baseline", 0)], [("cutout", 0)])
    assert [(row.name, seed) for row, seed in mine.unfinished] == [("baseline", 0)]
    mine.run()
    assert heard.ended[1:] == [("baseline", 0)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 151}, "--batch-size must be at most the 150 images to train on, got 151"),
        ({"names": ["cutout:area=0.001"]}, "a square of side 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        study(tmp_path, **changes)


def test_a_batch_is_shared_out_evenly(tmp_path):
    work = study(tmp_path)
    with pytest.raises(ValueError, match="--batch-size must be a multiple of the 3 processes, got 50"):
        dataclasses.replace(work, machine=studies.Machine(devices=3))


@pytest.mark.parametrize(
    ("accelerator", "precision", "words"),
    [
        ("cpu", "16-mixed", "--precision 16-mixed needs a GPU; on this accelerator it would be bf16-mixed"),
        ("tpux", "32-true", "invalid accelerator name"),
        pytest.param(
            "gpu",
            "32-true",
            "No supported gpu backend found",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_the_accelerator_cannot_is_refused(tmp_path, accelerator, precision, words):
    work = study(tmp_path, precision=precision)
    work.machine = studies.Machine(accelerator)
    with pytest.raises(ValueError, match=words):
        work.run()
    study(tmp_path)  # takes other settings, since there is nothing in the directory


@pytest.mark.parametrize(
    ("workers", "number", "words"),
    [
        (0, 1, r"^cannot read the image .*/a/0.png: cannot [^\n]*$"),
        (1, 3, r"^cannot read 3 of 10 images: .*/a/0.png: cannot [^\n]*; .*/a/1.png: cannot [^\n]*; .*/a/2.png: "),
    ],
)
def test_all_unreadable_images_are_named_in_one_line(tmp_path, workers, number, words):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 40)).save(tmp_path / "images" / name / f"{i}.png")
    wanted = {"data": f"folder:{tmp_path / 'images'}", "image_size": 16, "limit_train": None, "batch_size": 4}
    work = study(tmp_path / "out", workers=workers, **wanted)
    bad = sorted((tmp_path / "images" / "a").iterdir())
    for file in bad[:number]:
        file.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=words) as error:
        work.run()
    assert len(error.value.files) == number


# --- killed, stopped, and without room -------------------------------------------------------------------------------


@pytest.mark.sweep
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(whole, tmp_path):
    """Twice by SIGKILL, at moments that differ from one test to the next, and each time started again."""
    command = studies.arguments(tmp_path, NAMES, seeds=2)
    moments = random.Random()
    for _ in range(2):
        process = start(*command)
        wait_for(lambda: (tmp_path / "unfinished").exists() or len(results(tmp_path)) == 4, process)
        time.sleep(moments.uniform(0, 1))
        os.killpg(process.pid, signal.SIGKILL)
        finish(process)
        assert set(results(tmp_path)) <= set(ALL)
    code, _, err = finish(start(*command))
    assert code == 0, err
    assert results(tmp_path) == results(whole[0])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".locks",
        "accuracy.png",
        "curves.png",
        "results.jsonl",
        "settings.json",
        "table.md",
    ]


def test_an_interrupt_leaves_the_table_of_what_is_done(whole, tmp_path, monkeypatch):
    """By the signal of Ctrl-C, in the second of the runs that are not finished."""
    path, steps = shutil.copytree(whole[0], tmp_path / "study"), itertools.count(1)
    monkeypatch.setattr("torch_dropblock.compare.side_by_side.WORTH_STEPS", math.inf)
    monkeypatch.setattr(
        StudyProgress, "step_done", lambda _: next(steps) == 6 + 4 and signal.raise_signal(signal.SIGINT)
    )
    code, out, err = call(*studies.arguments(path, f"{NAMES},dropout", seeds=40))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which Lightning ignores from then on
    assert code == 130
    assert "Traceback" not in err
    assert "115 of 120 runs are not finished: the same command resumes them." in out
    assert f"| {NAMES} |" in (path / "table.md").read_text()
    assert out.splitlines()[-3:] == [str(path / name) for name in ("table.md", "accuracy.png", "curves.png")]


def small_disk(path):
    """A file system of one megabyte, which a checkpoint does not fit in."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, check=False)
    return done.returncode == 0


def test_a_full_disk_is_named_and_what_is_finished_stays(whole, tmp_path):
    path = tmp_path / "disk"
    if shutil.which("mount") is None or not small_disk(path):
        pytest.skip("a file system cannot be mounted here")
    try:
        for name in ("settings.json", "results.jsonl"):
            shutil.copy(whole[0] / name, path)
        before = (path / "results.jsonl").read_text()
        with pytest.raises(OSError, match="No space left on device") as error:
            study(path, seeds=3).run()
        assert error.value.filename == f"{path}/unfinished/baseline-seed2/last.ckpt"
        assert (path / "results.jsonl").read_text() == before
        assert not list(path.rglob("*.part"))
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_file_that_may_not_grow_is_one_line_and_what_is_finished_stays(whole, tmp_path):
    resource = pytest.importorskip("resource", reason="the size of a file cannot be limited here")
    path = shutil.copytree(whole[0], tmp_path / "study")
    before, (soft, hard) = (path / "results.jsonl").read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256_000, hard))
    try:
        said = complaint(*studies.arguments(path, seeds=3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said == f"{path}/unfinished/baseline-seed2/last.ckpt: File too large"
    assert (path / "results.jsonl").read_text() == before
    assert not list(path.rglob("*.part"))


# --- two processes ---------------------------------------------------------------------------------------------------

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch was built without gloo")


@needs_gloo
@pytest.mark.sweep
def test_torchruns_two_processes_train_one_run_after_the_other_and_write_each_once(tmp_path):
    recipe = {"epochs": 1, "limit_train": 50, "seeds": 2}
    code, out, err = finish(start(*studies.arguments(tmp_path, **recipe), before=[*TORCHRUN, free_port()]))
    assert code == 0, err
    assert out.count("top-1, %") == 1
    assert (tmp_path / "results.jsonl").read_text().count("\n") == 2
    assert {run: result["processes"] for run, result in results(tmp_path).items()} == {
        ("baseline", 0): 2,
        ("baseline", 1): 2,
    }


@needs_gloo
@pytest.mark.sweep
def test_torchruns_two_processes_find_what_one_finds(tmp_path):
    """With the same batch in all."""
    recipe = {"epochs": 4, "batch_size": 24, "limit_train": 600, "seeds": 2}
    process = start(*studies.arguments(tmp_path / "two", **recipe), before=[*TORCHRUN, free_port()])
    study(tmp_path / "one", **recipe).run()
    code, out, err = finish(process)
    assert code == 0, err
    assert out.count("top-1, %") == 1
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert list(two) == list(one) == [("baseline", 0), ("baseline", 1)]
    assert {result["processes"] for result in two.values()} == {2}
    means = [statistics.mean(result["top1"] for result in runs.values()) for runs in (one, two)]
    # of eight seeds of this recipe the standard deviation is 0.031, and so is the standard error of this difference
    assert abs(means[0] - means[1]) < 4 * 0.031
    assert min(means) > 0.7


@pytest.mark.sweep
@needs_gloo
def test_the_processes_that_devices_starts_count_each_image_once(tmp_path):
    """An odd number of them, and with the weights that are saved."""
    (tmp_path / "cifar10").mkdir()
    draw = np.random.default_rng(0)
    for part, number in (("train", 60), ("test", 41)):
        np.save(tmp_path / "cifar10" / f"{part}_images.npy", draw.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8))
        np.save(tmp_path / "cifar10" / f"{part}_labels.npy", np.arange(number) % 10)
    options = {"data": "cifar10", "data_dir": tmp_path, "devices": 2, "batch_size": 30, "limit_train": 60, "seeds": 2}
    path = tmp_path / "out"
    code, _, err = finish(start(*studies.arguments(path, **options), "--save-weights"))
    assert code == 0, err
    found = results(path)
    assert list(found) == [("baseline", 0), ("baseline", 1)]
    assert (path / "results.jsonl").read_text().count("\n") == 2
    source = data.load(Settings(data="cifar10"), tmp_path)
    for seed in range(2):
        check_weights(path, source, "small", f"baseline-seed{seed}.pt", ("baseline", seed))
    assert (41 * found["baseline", 0]["top1"]) == pytest.approx(round(41 * found["baseline", 0]["top1"]), abs=1e-4)


def test_processes_that_would_train_different_runs_are_told(monkeypatch):
    def gather(all_of_them, mine):
        all_of_them[:] = [mine, "baseline with seed 2 from the start"]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    trainer = SimpleNamespace(world_size=2)
    _Reporter(Heard(), Row("baseline"), 2, resumes=False).setup(trainer, None, "fit")
    with pytest.raises(ValueError, match="must train the same run, these train baseline with seed 2 from a checkpoint"):
        _Reporter(Heard(), Row("baseline"), 2, resumes=True).setup(trainer, None, "fit")


@needs_gloo
@pytest.mark.sweep
def test_nodes_that_do_not_see_one_directory_are_told(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "0")
    port = free_port()
    started = [
        start(
            *studies.arguments(tmp_path / str(rank), seeds=3),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            TORCHELASTIC_RUN_ID="test",
        )
        for rank in range(2)
    ]
    for process in started:
        code, _, err = finish(process)
        assert code == 2
        assert "error: all processes must train the same run, these train baseline with seed 0 from the start" in err
        assert "and baseline with seed 2 from the start: --out must be a folder that all nodes see" in err
    assert set(results(tmp_path / "0")) == set(ALL)


@needs_gloo
@pytest.mark.sweep
def test_lightnings_own_launch_on_several_nodes(tmp_path):
    """One command a node, told apart by NODE_RANK alone: the first node's claims the runs and writes the results."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = studies.arguments(tmp_path / "out", epochs=1, limit_train=100, nodes=2)
    started = [start(*command, NODE_RANK=str(rank), **where) for rank in range(2)]
    printed = []
    for process in started:
        code, out, err = finish(process)
        assert code == 0, err
        printed.append(out)
    assert "baseline" in printed[0]
    # up to PyTorch 2.8 Gloo says that it is connected
    assert [line for line in printed[1].splitlines() if not line.startswith("[Gloo]")] == []
    assert [(run, result["processes"]) for run, result in results(tmp_path / "out").items()] == [(("baseline", 0), 2)]
