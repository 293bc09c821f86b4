"""`torch-dropblock compare`: what is typed, and what is printed."""

import contextlib
import io
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from helpers import image_sets, studies
from helpers.command import call, complaint, succeed
from torch_dropblock.command.compare import _print_table
from torch_dropblock.compare import side_by_side
from torch_dropblock.compare.report import Difference, Line
from torch_dropblock.compare.rows import TABLE_1
from torch_dropblock.compare.settings import Settings, settings_of
from torch_dropblock.compare.study import Study


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with studies.one_thread():
        yield


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Without a second process, which a whole study of digits is worth."""
    monkeypatch.setattr("torch_dropblock.compare.side_by_side.WORTH_STEPS", math.inf)


@pytest.fixture
def made(monkeypatch):
    """The studies that are made, which train nothing."""
    found = []
    monkeypatch.setattr(Study, "run", lambda work: found.append(work))
    return found


# --- what is typed ---------------------------------------------------------------------------------------------------


def test_without_a_word_it_is_the_papers_table_on_digits_with_three_seeds(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("compare")[0] == 0
    (work,) = made
    assert work.settings == Settings(data="digits", model="small", epochs=6, batch_size=64)
    assert tuple(row.name for row in work.rows) == TABLE_1
    assert list(work.seeds) == [0, 1, 2]
    assert work.machine == studies.Machine()
    assert work.records.path.resolve() == tmp_path / "compare"
    assert not work.save_weights


@pytest.mark.parametrize(("model", "threads"), [("small", 1), ("resnet18", 2)])
def test_digits_take_one_thread(monkeypatch, tmp_path, model, threads):
    seen = []
    monkeypatch.setattr(Study, "run", lambda work: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        assert call("compare", "--model", model, "--out", tmp_path)[0] == 0
        assert (seen, torch.get_num_threads()) == ([threads], 2)
    finally:
        torch.set_num_threads(1)  # as in all of this file


def test_all_options_arrive(made, tmp_path):
    recipe = {
        "data": "digits",
        "model": "resnet18",
        "limit_train": 500,
        "keep_prob": 0.8,
        "block_size": 3,
        "rate": "paper",
        "curve": "step",
        "epochs": 6,
        "batch_size": 100,
        "learning_rate": 0.2,
        "weight_decay": 0.001,
        "decay": "steps",
        "precision": "bf16-mixed",
        "image_size": 100,
        "validate_every": 3,
    }
    where = {"accelerator": "cpu", "devices": 2, "nodes": 5, "workers": 3}
    options = recipe | where | {"out": tmp_path, "rows": "cutout,droppath", "seeds": 2}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert call("compare", *words, "--save-weights", "--measure", "parts,occlusion")[0] == 0
    (work,) = made
    assert work.records.measures == ["parts", "occlusion"]
    assert vars(work.settings) == recipe
    assert vars(work.machine) == where
    assert [row.name for row in work.rows] == ["baseline", "cutout", "droppath"]
    assert (list(work.seeds), work.save_weights) == ([0, 1], True)


def test_torchruns_processes_are_used(made, tmp_path, monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert call("compare", "--out", tmp_path)[0] == 0
    assert (made[0].machine.devices, made[0].machine.nodes) == (4, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "imagenet"), "--data must be digits, fashion-mnist, cifar10 or folder:DIR, got 'imagenet'"),
        (
            ("--data", "cifar10", "--data-dir", "absent"),
            "--data-dir must be a folder with all files of cifar10, got absent; name another one, or add --download",
        ),
        (("--data", "folder:absent"), "--data must name a folder of images, got absent"),
        (("--rows", "dropblok"), "got 'dropblok'; close to it: dropblock"),
        (("--rows", "dropout,"), "joined by +, got ''"),
        (("--rows", "cutout,cutout"), "--rows must name each row once, got cutout, cutout"),
        (("--seeds", 0), "--seeds must be an int of at least 1, got 0"),
        (("--epochs", 0), "--epochs must be an int of at least 1, got 0"),
        (("--keep-prob", 1.5), "--keep-prob must be a number in [0, 1], got 1.5"),
        (("--block-size", 0), "--block-size must be an int of at least 1, got 0"),
        (("--rate", "some"), "--rate must be one of exact, paper, got 'some'"),
        (("--curve", "sine"), "--curve must be one of linear, cosine, constant, step, got 'sine'"),
        (
            ("--measure", "speed"),
            "--measure must be all, or some of occlusion, corruption, calibration, uncertainty, p",
        ),
        (("--preset", "slow"), "--preset must be one of quick, standard, paper, got 'slow'"),
        (("--precision", "fp8"), "--precision must be one of 32-true, bf16-mixed, 16-mixed, 64-true, got 'fp8'"),
        (("--decay", "linear"), "--decay must be one of cosine, steps, got 'linear'"),
        (("--limit-train", 5), "--limit-train must be from 10, one image of each class, to all 1437 of them, got 5"),
        (("--batch-size", 5000), "--batch-size must be at most the 1437 images to train on, got 5000"),
        (("--devices", 3), "--batch-size must be a multiple of the 3 processes, got 64"),
        (("--devices", 0), "--devices must be an int of at least 1, got 0"),
        (("--rows", ""), "joined by +, got ''"),
        (("--rate", ""), "--rate must be one of exact, paper, got ''"),
        (("--devices", -1), "--devices must be an int of at least 1, got -1"),
        (("--workers", -1), "--workers must be an int of at least 0, got -1"),
        (("--model", "resnet19"), "--model must be one of small, small-32, small-64, resnet101, "),
        (("--accelerator", "abacus"), "invalid accelerator name"),
        (("--precision", "16-mixed", "--accelerator", "cpu"), "--precision 16-mixed needs a GPU"),
        (("--out", "/dev/null/study"), "/dev/null/study"),
    ],
)
def test_bad_values_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in complaint("compare", *words)


def test_all_unreadable_images_are_listed_one_a_line(tmp_path):
    image_sets.images(tmp_path / "set", ("a", "b"), 10)
    bad = [tmp_path / "set" / "a" / f"{i}.png" for i in range(7)]
    for file in bad:
        file.write_bytes(b"no image")
    words = ("--data", f"folder:{tmp_path}/set", "--model", "small", "--batch-size", 4, "--image-size", 16)
    code, out, err = call("compare", *words, "--accelerator", "cpu", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    *lines, last = err.splitlines()
    assert [file for file, line in zip(bad, lines, strict=True) if str(file) in line] == bad
    assert last.startswith(f"error: cannot read 7 of 20 images: {bad[0]}: ")


def test_what_was_found_in_a_folder_is_told(made, tmp_path):
    for part in ("TRAIN", "TEST"):
        image_sets.images(tmp_path / "set" / part, ("[b]", "cat"))
    words = ("--data", f"folder:{tmp_path}/set", "--model", "small", "--batch-size", 4, "--image-size", 16)
    _, _, err = call("compare", *words, "--out", tmp_path / "out")
    assert err == f"training on {tmp_path}/set/TRAIN, validating on {tmp_path}/set/TEST\n"


def test_help_says_all_defaults():
    out = " ".join(re.sub("[│╭╮╰╯─]", " ", succeed("compare", "--help")).split())
    for words in (
        "[default: (the paper's nine)]",
        "[default: (small; resnet50 for folders)]",
        "[default: (the side of the last map, at most 7)]",
        "[default: (quick for digits, else standard)]",
        "[default: (0.0005; of paper 0.0001)]",
        "[default: (torchrun's, else 1)]",
        "amount of label-smoothing",
    ):
        assert words in out
    assert out.count("[default:") >= 20


@pytest.mark.parametrize("columns", [80, 48])
@pytest.mark.parametrize("top5", [[], [93.2, 93.25, 94.15]])
def test_the_papers_table_fits_a_terminal(columns, top5):
    difference = Difference(1.84, -10.12, 3.4) if not top5 else Difference(1.84, -0.12, 3.4)
    lines = [Line(row, [76.51, 77.9, 78.35], top5, 1234.5, difference) for row in TABLE_1]
    out = io.StringIO()
    _print_table(Console(file=out, width=columns, highlight=False), lines, "ResNet-50")
    assert max(map(len, out.getvalue().splitlines())) <= columns
    assert "…" not in out.getvalue()
    assert out.getvalue().count("77.59 ± 0.96") == len(TABLE_1)
    assert out.getvalue().count(f"{difference.low:+.2f} to +3.40") == len(TABLE_1)
    assert ("───" in out.getvalue()) == (columns == 80)  # a table, or else a list for each row


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=studies.TIMEOUT)


def test_help_waits_for_nothing_that_trains():
    code = (
        "import sys; sys.argv = ['torch-dropblock', 'compare', '--help']\n"
        "from torch_dropblock.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "names = ['lightning', 'torchmetrics', 'torchvision', 'sklearn', 'scipy', 'matplotlib']\n"
        "assert not set(names) & set(sys.modules), set(names) & set(sys.modules)"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["lightning", pytest.param("sklearn", marks=pytest.mark.sweep)])
def test_without_the_extra_one_line_says_how_to_get_it(name):
    code = (
        f"import sys; sys.argv = ['torch-dropblock', 'compare']; sys.modules[{name!r}] = None\n"
        "from torch_dropblock.__main__ import main; main()"
    )
    done = run_python(code)
    assert done.returncode == 2
    assert re.fullmatch(
        rf'error: {name}[.\w]* is not installed; run: pip install "torch-dropblock\[train\]"\n', done.stderr
    )


def test_a_long_study_of_digits_has_a_second_process(monkeypatch, tmp_path):
    calls = []

    @contextlib.contextmanager
    def helped(work):
        calls.append(work)
        yield SimpleNamespace(join=lambda: calls.append("joined"))
        calls.append("ended")

    monkeypatch.setattr(side_by_side, "helped", helped)
    monkeypatch.setattr(side_by_side, "WORTH_STEPS", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(Study, "run", lambda _: calls.append("run"))
    words = ("--rows", "cutout", "--seeds", 2, "--measure", "parts", "--accelerator", "cpu", "--save-weights")
    assert call("compare", "--out", tmp_path, *words)[0] == 0
    assert calls[1:] == ["run", "joined", "run", "ended"]  # the second run is for what a process that failed has left
    assert calls[0] == side_by_side.Work(
        settings_of(None), ["baseline", "cutout"], range(2), tmp_path, ["parts"], "cpu", save_weights=True
    )


# --- what is printed -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished")
    words = studies.arguments(path, "dropblock+label-smoothing,spatial-dropout", seeds=2)
    return path, words, call(*words)


def test_a_study_ends_with_a_table_and_two_plots(finished):
    path, _, (code, out, err) = finished
    assert code == 0
    assert re.fullmatch(r"(\S+, seed [01]: top-1 \d+\.\d\d % in \d+ s\n){6}", err)
    assert out.startswith("digits, small, 2 epochs\n")
    assert max(len(line.rstrip()) for line in out.splitlines()[:-3]) <= 84
    assert "…" not in out
    for row in ("baseline", "spatial-dropout", "+label-smoothing"):
        assert re.search(rf"^ {re.escape(row)}( |$)", out, re.MULTILINE)
    assert out.splitlines()[-3:] == [str(path / name) for name in ("table.md", "accuracy.png", "curves.png")]
    assert (path / "table.md").read_text().count("\n| ") == 5
    assert (path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_trains_nothing(finished):
    _, words, (_, out, _) = finished
    assert call(*words) == (0, out, "")


def test_the_table_has_what_is_asked_for(finished):
    _, words, _ = finished
    words = [{"dropblock+label-smoothing,spatial-dropout": "spatial-dropout"}.get(word, word) for word in words]
    out = succeed(*words)
    assert "label-smoothing" not in out
    words[words.index("--seeds") + 1] = 1
    out = succeed(*words)
    assert re.search(r"^ spatial-dropout +\d+\.\d\d +[+-]", out, re.MULTILINE)


def test_measures_that_need_weights_which_were_not_saved_are_named(finished):
    _, words, (_, out, _) = finished
    code, more, err = call(*words, "--measure", "parts")
    assert (code, err) == (0, "")
    assert more.startswith("Not measured, since --save-weights did not keep the weights: baseline with seed")
    assert more.endswith(out)


def test_measures_have_tables_and_plots(tmp_path):
    words = studies.arguments(tmp_path, "dropout", epochs=1, limit_train=50)
    code, out, _ = call(*words, "--measure", "occlusion,calibration")
    assert code == 0
    assert re.search(r"^occlusion$[^A-Z]*^ dropout +\d+\.\d\d +[+-]\d+\.\d\d +1$", out, re.MULTILINE)
    assert re.search(r"^calibration$[^A-Z]*ECE, % +− baseline +NLL +− baseline +seeds$", out, re.MULTILINE)
    assert [line.rpartition("/")[2] for line in out.splitlines()[-3:]] == [
        "occlusion.png",
        "reliability.png",
        "differences.png",
    ]
    assert "**calibration**" in (tmp_path / "table.md").read_text()
    assert succeed(*words) == out  # what was measured is shown, wanted or not


def test_another_recipe_is_refused_and_named(finished):
    path, words, _ = finished
    assert complaint(*words, "--learning-rate", "0.2") == (
        f"{path} holds runs made with --learning-rate 0.1, and now 0.2: use the same settings, or another --out"
    )
