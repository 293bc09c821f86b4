"""Lines of results.jsonl: what is a result, and what is named as none."""

import json

import pytest

from helpers.command import complaint
from torch_dropblock.compare.records import Records
from torch_dropblock.compare.result_lines import NEEDED, OPTIONAL, json_object, read_results
from torch_dropblock.compare.settings import settings_of

NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**400


PAIRS, TRIPLES = [[0.0, 0.5], [0.5, 0.25]], [[0.5, 0.25, 1.0]]
MEASURES = {
    "occlusion": {"auc": 0.5, "curve": PAIRS},
    "corruption": {"mean": 0.5, "noise": PAIRS, "blur": PAIRS, "contrast": PAIRS, "jpeg": []},
    "calibration": {"ece": 0.1, "nll": 2.5, "bins": TRIPLES},
    "uncertainty": {
        "passes": 20, "top1": 0.5, "ece": 0.1, "aurc": 0.5, "auroc_errors": NAN, "auroc_others": 0.5, "others": "digits"
    },
    "parts": {"share": 0.25},
}  # fmt: skip


def result(**changes):
    return {
        "row": "baseline",
        "seed": 0,
        "top1": 0.5,
        "top5": 1,
        "loss": NAN,
        "train_top1": 0.25,
        "train_loss": 3.5,
        "step_ms": 1.0,
        "seconds": 2.0,
        "curves": {"top1": [[1, 0.5]], "loss": [[1, NAN]], "train_loss": []},
        "images": {"train": 1437, "val": 360, "classes": 10},
        "measures": MEASURES,
        "processes": 1,
        "machine": {"processor": "P", "threads": 1, "gpu": None},
    } | changes


def written(path, *results):
    file = path / "results.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in results))
    return file


def test_results_are_read_in_order(tmp_path):
    file = written(tmp_path, result(seed=3), result(seed=1), result(row="cutout", seed=3))
    assert list(read_results(file)) == [("baseline", 3), ("baseline", 1), ("cutout", 3)]
    line, content = read_results(file)["baseline", 1]
    assert line == json.dumps(result(seed=1))
    assert json.dumps(content) == line  # NaN is not equal to itself


@pytest.mark.parametrize("name", OPTIONAL)
def test_older_lines_lack_what_is_newer(tmp_path, name):
    older = result()
    del older[name]
    assert len(read_results(written(tmp_path, older))) == 1


def test_a_line_that_is_there_twice_is_one_run_and_the_last_counts(tmp_path):
    file = written(tmp_path, result(), result(seed=1), result(), result(top1=0.75))
    runs = read_results(file)
    assert [(run, content["top1"]) for run, (_, content) in runs.items()] == [
        (("baseline", 0), 0.75),
        (("baseline", 1), 0.5),
    ]


def test_empty_lines_are_none(tmp_path):
    file = written(tmp_path, result())
    file.write_text("\n" + file.read_text().replace("\n", "\r\n") + "  \n")
    assert len(read_results(file)) == 1


WRONG = {
    "row": [None, 1, "a\nb", "\ud800", ["baseline"]],
    "seed": [None, -1, 0.0, True, HUGE, "0"],
    "top1": [None, NAN, INFINITE, -0.1, 1.1, HUGE, True, "0.5", [0.5]],
    "top5": [None, NAN, 1.1, "1"],
    "loss": [None, "1", [1.0], False],
    "train_top1": [NAN, -1],
    "train_loss": [None, {}],
    "step_ms": [None, NAN, INFINITE, 0, -1.0, HUGE, "1"],
    "seconds": [None, NAN, INFINITE, 0, -1.0, HUGE],
    "curves": [
        None,
        [],
        *({"top1": points} for points in (None, [1], [[1]], [[1, NAN]], [[0, 0.5]], [[NAN, 0.5]], [["1", 0.5]], {})),
        *({"loss": points} for points in ([[1, None]], [[HUGE, 0.5]])),
    ],
    "images": [None, {}, [], {"train": 1}, *({"train": count, "val": 1, "classes": 1} for count in (0, "1", HUGE))],
    "measures": [
        None,
        [],
        {"speed": {}},
        *({name: values} for name in MEASURES for values in (None, {}, [])),
        *(
            {name: MEASURES[name] | change}
            for name, change in (
                ("occlusion", {"auc": 1.1}),
                ("occlusion", {"curve": TRIPLES}),
                ("corruption", {"jpeg": None}),
                ("calibration", {"nll": "1"}),
                ("calibration", {"bins": PAIRS}),
                ("uncertainty", {"passes": 0}),
                ("uncertainty", {"others": 1}),
                ("parts", {"share": NAN}),
            )
        ),
    ],
    "processes": [None, 0, 1.5, "2", HUGE],
    "machine": [None, [], "P", {"processor": {}}, {"processor": [[]]}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_that_is_none_is_named_with_the_file_and_the_line(tmp_path, name, value):
    file = written(tmp_path, result(seed=1), result(**{name: value}))
    with pytest.raises(ValueError, match=f"results.jsonl, line 2: {name} must be .*, got .*; delete the line") as error:
        read_results(file)
    assert len(str(error.value)) < len(str(file)) + 200
    assert WRONG.keys() == NEEDED.keys() | OPTIONAL.keys()


@pytest.mark.parametrize("name", NEEDED)
def test_a_value_that_is_missing_is_named(tmp_path, name):
    lacking = result()
    del lacking[name]
    with pytest.raises(ValueError, match=f"line 1: {name} must be .*, got nothing"):
        read_results(written(tmp_path, lacking))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("text", ["{", "[1]", "null", DEEP, '{"row": ' + DEEP + "}", '{"seed": ' + "1" * 5000 + "}"])
def test_what_is_no_json_object_is_damaged(tmp_path, text):
    file = written(tmp_path, result())
    with file.open("a") as stream:
        stream.write(text + "\n")
    with pytest.raises(ValueError, match="results.jsonl, line 2 is damaged: "):
        read_results(file)
    with pytest.raises(ValueError, match="^here is damaged: "):
        json_object("here", text)


def test_bytes_that_are_no_text_are_damaged(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="results.jsonl is damaged: 'utf-8' codec"):
        read_results(tmp_path / "results.jsonl")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (json.dumps(result(top1=NAN)), "line 1: top1 must be a number in [0, 1], got nan"),
        (
            json.dumps(result(images={})),
            "line 1: images must be counts of train, val and classes, each at least 1, got",
        ),
        (DEEP, "line 1 is damaged: "),
    ],
)
def test_the_command_ends_with_one_line(tmp_path, line, words):
    Records(tmp_path, settings_of(None))
    (tmp_path / "results.jsonl").write_text(line + "\n")
    assert words in complaint("compare", "--out", tmp_path)


@pytest.mark.parametrize("content", [DEEP, '{"epochs": ' + "1" * 5000 + "}", '{"epochs": {}}', '{"data": [[]]}'])
def test_so_do_damaged_settings(tmp_path, content):
    written(tmp_path, result())
    (tmp_path / "settings.json").write_text(content)
    assert f"{tmp_path}/settings.json is damaged: " in complaint("compare", "--out", tmp_path)
