"""What a directory holds: whole files, whatever happens, and one process at a run."""

import dataclasses
import errno
import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

from torch_dropblock.compare import records
from torch_dropblock.compare.records import Records
from torch_dropblock.compare.rows import Row
from torch_dropblock.compare.settings import Settings

BASELINE = Row("baseline")


def result(row="baseline", seed=0, **more):
    numbers = {"top1": 0.5, "step_ms": 1.0, "seconds": 2.0}
    return {"row": row, "seed": seed, "curves": {}, "machine": {}} | numbers | more


def test_results_are_kept_in_the_order_in_which_they_came(tmp_path):
    mine = Records(tmp_path / "new" / "study", Settings())
    assert mine.results() == []
    for seed in (1, 0):
        mine.add(result(seed=seed))
    again = Records(tmp_path / "new" / "study", Settings())
    assert again.results() == [result(seed=1), result(seed=0)]
    assert again.finished(BASELINE, 1)
    assert not again.finished(BASELINE, 2)
    assert not again.finished(Row("dropout"), 1)
    assert sorted(file.name for file in again.path.iterdir()) == [".locks", "results.jsonl", "settings.json"]


def test_a_run_that_two_processes_made_counts_once(tmp_path):
    mine = Records(tmp_path, Settings())
    for top1 in (0.5, 0.6):
        mine.add(result(top1=top1))
    assert mine.results() == [result(top1=0.6)]


def test_a_changed_setting_is_refused_with_the_difference(tmp_path):
    Records(tmp_path, Settings()).add(result())
    with pytest.raises(
        ValueError, match=r"holds runs made with --epochs 30, and now 31; --keep-prob 0.9, and now 0.8: use the same"
    ):
        Records(tmp_path, Settings(epochs=31, keep_prob=0.8))
    assert json.loads((tmp_path / "settings.json").read_text()) == dataclasses.asdict(Settings())


def test_a_directory_without_runs_takes_other_settings(tmp_path):
    Records(tmp_path, Settings())
    other = Records(tmp_path, Settings(epochs=31))
    with other.claimed(BASELINE, 0):
        pass
    Records(tmp_path, Settings(epochs=32))


def test_a_directory_with_an_unfinished_run_does_not(tmp_path):
    mine = Records(tmp_path, Settings())
    with mine.claimed(BASELINE, 0):
        with pytest.raises(ValueError, match="--epochs 30, and now 31"):
            Records(tmp_path, Settings(epochs=31))
        (mine.folder_of(BASELINE, 0) / "last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="--epochs 30, and now 31"):
        Records(tmp_path, Settings(epochs=31))


def test_of_two_commands_with_other_settings_that_start_together_one_is_refused(tmp_path):
    one, other = Records(tmp_path, Settings()), Records(tmp_path, Settings(epochs=31))
    with other.claimed(BASELINE, 0) as mine:
        assert mine
    with pytest.raises(ValueError, match="--epochs 31, and now 30"), one.claimed(BASELINE, 1):
        pass


def test_runs_without_settings_are_refused(tmp_path):
    Records(tmp_path, Settings()).add(result())
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="holds runs but not settings.json, their settings; use another --out"):
        Records(tmp_path, Settings())


@pytest.mark.parametrize("name", ["settings.json", "results.jsonl"])
@pytest.mark.parametrize("content", ['{"row": "base', "[1]", json.dumps(result(top1="x")), "\udcff"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    Records(tmp_path, Settings()).add(result())
    (tmp_path / name).write_text(content + "\n", errors="surrogateescape")
    with pytest.raises(ValueError, match=f"{name}(, line 1)?( is damaged: |: top1 must be )|made with --data None"):
        Records(tmp_path, Settings()).results()


@pytest.mark.parametrize("happens", ["write", "rename"])
def test_a_write_that_fails_leaves_what_was_there_and_names_the_file(tmp_path, monkeypatch, happens):
    mine = Records(tmp_path, Settings())
    mine.add(result())

    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync" if happens == "write" else "replace", refuse)
    for write in (
        lambda: mine.add(result(seed=1)),
        lambda: mine.write("table.md", "text"),
        lambda: mine.save_weights(BASELINE, 0, {"weight": torch.ones(3)}),
    ):
        with pytest.raises(OSError, match="No space left on device") as error:
            write()
        assert error.value.filename.startswith(str(tmp_path))
    assert mine.results() == [result()]
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*.pt"))


def test_weights_are_saved_whole(tmp_path):
    mine = Records(tmp_path, Settings())
    weights = {"weight": torch.ones(3, 3)}
    mine.save_weights(Row("dropblock:block_size=2"), 4, weights)
    (file,) = (tmp_path / "weights").iterdir()
    assert file.suffix == ".pt"
    assert torch.equal(torch.load(file, weights_only=True)["weight"], weights["weight"])


# --- claims ------------------------------------------------------------------------------------------------------


def test_a_run_is_claimed_once_and_forgotten_when_it_is_finished(tmp_path):
    one, other = Records(tmp_path, Settings()), Records(tmp_path, Settings())
    with one.claimed(BASELINE, 0) as mine:
        assert mine
        with other.claimed(BASELINE, 0) as others:
            assert not others
        with other.claimed(BASELINE, 1) as others:
            assert others
        (one.folder_of(BASELINE, 0) / "last.ckpt").write_bytes(b"")
        one.add(result())
    assert not (tmp_path / "unfinished").exists()
    with other.claimed(BASELINE, 0) as mine:
        assert not mine


def test_an_unfinished_run_keeps_its_checkpoint(tmp_path):
    mine = Records(tmp_path, Settings())
    checkpoint = mine.folder_of(BASELINE, 0) / "last.ckpt"
    with mine.claimed(BASELINE, 0):
        checkpoint.write_bytes(b"")
    assert checkpoint.exists()
    with mine.claimed(BASELINE, 0) as again:
        assert again


def test_what_a_killed_process_left_of_a_finished_run_is_cleared_away(tmp_path):
    mine = Records(tmp_path, Settings())
    mine.folder_of(BASELINE, 0).mkdir(parents=True)
    mine.add(result())
    Records(tmp_path, Settings())
    assert not mine.folder_of(BASELINE, 0).exists()


def test_no_two_rows_share_a_folder(tmp_path):
    mine = Records(tmp_path, Settings())
    names = ["dropblock", "dropblock:keep_prob=0.5", "dropblock+keep_prob-0.5", "dropblock-keep_prob-0.5", "dropblock:"]
    folders = {mine.folder_of(Row(name), seed) for name in names for seed in (0, 1)}
    assert len(folders) == 2 * len(names)
    assert mine.folder_of(BASELINE, 0).name == "baseline-seed0"


HOLD = """
import sys, time
from pathlib import Path
from torch_dropblock.compare.records import Records
from torch_dropblock.compare.rows import Row
from torch_dropblock.compare.settings import Settings

with Records(Path(sys.argv[1]), Settings()).claimed(Row("baseline"), 0) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def test_a_claim_goes_with_the_process(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    mine = Records(tmp_path, Settings())
    with mine.claimed(BASELINE, 0) as claimed:
        assert not claimed
    holder.kill()
    with mine.claimed(BASELINE, 0, patience=60) as claimed:
        assert claimed
    holder.communicate()


def _add(path, worker):
    mine = Records(path, Settings())
    for seed in range(5):
        mine.add(result(f"row {worker}", seed))
        mine.write("table.md", f"{worker} {seed}\n" * 1000)


def test_nothing_is_lost_when_several_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    workers = [context.Process(target=_add, args=(tmp_path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(180)
        assert worker.exitcode == 0
    found = {(known["row"], known["seed"]) for known in Records(tmp_path, Settings()).results()}
    assert found == {(f"row {worker}", seed) for worker in range(4) for seed in range(5)}
    assert len(set((tmp_path / "table.md").read_text().splitlines())) == 1


def test_save_is_torchs(tmp_path):
    records.save({"numbers": [1, 2]}, tmp_path / "file.pt")
    assert torch.load(tmp_path / "file.pt", weights_only=True) == {"numbers": [1, 2]}
