"""`torch-dropblock bench`: what it prints and writes."""

import json
import re

import pytest
import torch

from command import call, check_texts, complaint
from torch_dropblock import bench


def test_bench(tmp_path, saved):
    rows, plot = tmp_path / "rows.json", tmp_path / "ratios.png"
    options = ("--rounds", "3", "--json", rows, "--plot", plot, "--dtype", "float32", "--dtype", "bfloat16")
    code, out, _ = call("bench", "-s", "4x8x14x14", "-s", "4x8x50", *options)
    assert code == 0
    assert max(len(line) for line in out.splitlines()[:-2]) <= 80
    assert "…" not in out
    assert out.splitlines()[-2:] == [str(rows), str(plot)]
    measured = json.loads(rows.read_text())
    assert {(tuple(row["shape"]), row["dtype"]) for row in measured} == {
        (shape, dtype) for shape in ((4, 8, 14, 14), (4, 8, 50)) for dtype in ("float32", "bfloat16")
    }
    assert re.search(r"eager, bfloat16, contiguous\n", out)
    assert "Tensors saved for backward by torch-dropblock: at most 0 bytes per element" in " ".join(out.split())
    assert f"torch {torch.__version__.partition('+')[0]}" in " ".join(out.split())
    (figure,) = saved
    check_texts(figure)


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
        (("--plot", "ratios.gif"), "the output must end in"),
    ],
)
def test_bench_refuses_before_it_measures(arguments, words):
    assert words in complaint("bench", *arguments)
