"""`torch-dropblock bench`: what it prints and writes."""

import io
import json
import re
import sys

import pytest
import torch
from rich.console import Console

from helpers.command import call, complaint
from torch_dropblock.bench import measure as bench
from torch_dropblock.command.bench import _columns
from torch_dropblock.command.terminal import Table


def test_bench(tmp_path):
    rows = tmp_path / "rows.json"
    options = ("--rounds", "3", "--json", rows, "--dtype", "float32", "--dtype", "bfloat16")
    code, out, _ = call("bench", "-s", "4x8x14x14", "-s", "4x8x50", *options)
    assert code == 0
    assert max(len(line) for line in out.splitlines()[:-1]) <= 80
    assert "…" not in out
    assert out.splitlines()[-1] == str(rows)
    measured = json.loads(rows.read_text())
    assert {(tuple(row["shape"]), row["dtype"]) for row in measured} == {
        (shape, dtype) for shape in ((4, 8, 14, 14), (4, 8, 50)) for dtype in ("float32", "bfloat16")
    }
    assert re.search(r"eager, bfloat16, contiguous\n", out)
    assert "Tensors saved for backward by torch-dropblock: at most 0 bytes per element" in " ".join(out.split())
    assert f"torch {torch.__version__.partition('+')[0]}" in " ".join(out.split())


def test_rows_are_written_as_they_come(tmp_path, monkeypatch):
    rows, measure, measured = tmp_path / "rows.json", bench.measure, []

    def measure_one(case, rounds):
        if measured:
            raise RuntimeError("out of memory")
        measured.extend(measure(case, rounds))
        return measured

    monkeypatch.setattr(bench, "measure", measure_one)
    with pytest.raises(RuntimeError, match="out of memory"):
        call("bench", "-s", "2x3x8x8", "-s", "2x3x9x9", "--rounds", "3", "--json", rows)
    assert len(json.loads(rows.read_text())) == len(measured)


def test_lines_are_printed_as_they_come(monkeypatch):
    printed, measure = [], bench.measure

    def note_and_measure(case, rounds):
        printed.append(sys.stdout.getvalue())
        return measure(case, rounds)

    monkeypatch.setattr(bench, "measure", note_and_measure)
    code, out, err = call("bench", "-s", "2x3x8x8", "-s", "2x3x10x10", "--dtype", "float32", "--rounds", "3")
    assert (code, err) == (0, "")
    assert "block 7, keep_prob 0.9" in printed[0]
    assert "eager, float32, contiguous" in printed[0]
    assert "2×3×8×8" not in printed[0]
    assert re.search(r"\n 2×3×8×8 .*×\n$", printed[1])
    assert out.startswith(printed[1])


@pytest.mark.parametrize("columns", [48, 60])
def test_a_narrow_terminal(columns):
    code, out, _ = call("bench", "-s", "2x3x10x10", "--rounds", "3", columns=columns)
    assert code == 0
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= columns
    assert re.search(r"\n +ours  +[0-9.]+×\n", out)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_largest_table_fits_in_80_columns(on_cpu):
    names = [bench.PRODUCT, bench.OURS, *([bench.PYTHON] if on_cpu else []), "nn.Dropout", "torchvision", "timm"]
    cases = bench.chosen_cases(device="cpu") if on_cpu else [bench.Case(shape) for shape in bench.GPU_SHAPES]
    table = Table(Console(file=io.StringIO(), width=80), *_columns(cases, names, on_cpu))
    assert table.widths


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-s", "28x28"), "--shape must be 3 to 5 numbers"),
        (("-s", "0x2x3x4"), "--shape must be"),
        (("--dtype", "int8"), "--dtype must be one of float32"),
        (("--layout", "nhwc"), "--layout must be one of contiguous, channels_last"),
        (("--mode", "fast"), "--mode must be one of eager, compiled"),
        (("-s", "2x3x4", "--layout", "channels_last"), "channels_last needs a shape of 4 or 5"),
        (("--device", "nowhere"), "device 'nowhere' cannot be used here"),
        (("--keep-prob", "2"), "keep_prob must be"),
        (("--json", "not/there.json"), "there is no folder not to write there.json into"),
    ],
)
def test_bench_refuses_before_it_measures(arguments, words):
    assert words in complaint("bench", *arguments)


@pytest.mark.parametrize(("spread", "marked"), [(0.19, False), (0.21, True)])
def test_an_unstable_baseline_is_marked(monkeypatch, spread, marked):
    monkeypatch.setattr(bench, "spread", lambda times: spread)
    code, out, _ = call("bench", "-s", "2x3x14x14", "--rounds", "3", "--mode", "eager", "--dtype", "float32")
    assert code == 0
    assert ("?: the baseline varied by more than 20 %" in " ".join(out.split())) == marked
    assert bool(re.search(r"\d\?", out)) == marked
