"""`benchmarks/gpu.py`: its logic, on the CPU; the figures need a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

from torch_dropblock import DropBlock2d
from torch_dropblock.bench import measure
from torch_dropblock.bench.measure import OURS, PRODUCT
from torch_dropblock.networks import sites

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """The script, with shapes that a CPU can bear."""
    pytest.importorskip("torchvision", reason="needs torchvision")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(measure, "GPU_SHAPES", ((2, 4, 9, 9), (1, 4, 8, 8)))
    import gpu

    yield gpu
    for name in ("gpu", "resnet50_step"):
        sys.modules.pop(name, None)


def test_what_is_measured_and_in_which_order(gpu):
    jobs = gpu.jobs("cpu", rounds=1, batch=2)
    assert [job.kind for job in jobs] == ["layer"] * 5 + ["resnet50"] * 2 + ["layer"] * 3 + ["resnet50"]
    assert {(case.dtype, case.layout, case.mode) for case in gpu.cases("cpu")[:5]} == {
        ("bfloat16", "contiguous", "eager"),
        ("float32", "contiguous", "eager"),
        ("bfloat16", "channels_last", "eager"),
        ("bfloat16", "contiguous", "compiled"),
        ("bfloat16", "channels_last", "compiled"),
    }
    assert sum(job.seconds for job in jobs) < 8 * 60


def test_rows_of_the_layer(gpu, tmp_path, capsys):
    gpu.run(gpu.jobs("cpu", rounds=1, batch=2, side=32)[:1], 600, tmp_path, 7)
    rows = json.loads((tmp_path / "layer-gpu-7.json").read_text())
    assert [row["contender"] for row in rows][:2] == [PRODUCT, OURS]
    for wanted in ("median_us", "ratio", "gigabytes_per_second", "saved_bytes", "processor", "torch"):
        assert all(wanted in row for row in rows)
    assert f"{OURS}: " in capsys.readouterr().out


@pytest.mark.sweep
def test_rows_of_a_step(gpu, tmp_path, capsys):
    jobs = gpu.jobs("cpu", rounds=1, batch=2, side=32)
    gpu.run([next(job for job in jobs if job.name == "ResNet-50, eager")], 600, tmp_path, 7)
    rows = json.loads((tmp_path / "resnet50-gpu-7.json").read_text())
    assert {row["layer"] for row in rows} == {gpu.PLAIN, PRODUCT, OURS}
    out = capsys.readouterr().out
    assert "failed: ResNet-50, eager: " in out  # torchvision's layer, on maps as small as these


def test_what_fails_or_has_no_time_loses_nothing_else(gpu, tmp_path, capsys):
    def peers_fail(names):
        if names is None:
            raise RuntimeError("of a peer")
        return [{"names": list(names)}]

    def all_fail(names):
        raise torch.OutOfMemoryError("of all")

    jobs = [
        gpu.Job("layer", "first", 1, lambda _: [{"first": 1}], ()),
        gpu.Job("layer", "peers", 1, peers_fail, (PRODUCT, OURS)),
        gpu.Job("layer", "all", 1, all_fail, (PRODUCT, OURS)),
        gpu.Job("layer", "long", 100, lambda _: pytest.fail("there was no time"), ()),
        gpu.Job("resnet50", "last", 1, lambda _: [{"last": 1}], ()),
    ]
    gpu.run(jobs, 50, tmp_path, 1)
    assert json.loads((tmp_path / "layer-gpu-1.json").read_text()) == [{"first": 1}, {"names": [PRODUCT, OURS]}]
    assert json.loads((tmp_path / "resnet50-gpu-1.json").read_text()) == [{"last": 1}]
    out = capsys.readouterr().out
    assert "failed: peers: RuntimeError: of a peer" in out
    assert out.count("failed: all: OutOfMemoryError") == 2
    assert "s are too few: long" in out


def test_layers_are_at_the_36_sites(gpu):
    import resnet50_step

    ours, theirs = (resnet50_step.resnet50(weights=None) for _ in range(2))
    resnet50_step.changes(True, "cpu")[OURS](ours)
    assert len(sites.find(ours)) == 36
    resnet50_step.put_layers(lambda keep_prob: DropBlock2d(7, keep_prob=keep_prob), theirs)
    layers = [module for module in theirs.modules() if isinstance(module, DropBlock2d)]
    assert sorted(layer.keep_prob for layer in layers) == sorted(s.layer.keep_prob for s in sites.find(ours).values())
