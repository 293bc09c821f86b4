"""How many processes train together, and what becomes of those that do not."""

import dataclasses
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from torch import distributed

from helpers import studies
from helpers.command import call
from helpers.studies import finish, results, start
from torch_dropblock.compare.distributed import Children, Machine, Stop


@pytest.mark.parametrize("name", ["devices", "nodes", "workers"])
def test_impossible_machines_are_refused(name):
    with pytest.raises(ValueError, match=f"--{name} must be an int of at least [01], got -1"):
        Machine(**{name: -1})


@pytest.mark.sweep
def test_processes_that_do_not_train_together_share_the_runs(tmp_path):
    """As with `srun` or in a pod, where each is told a rank: this one, and another of rank 1, which begins."""
    command = studies.arguments(tmp_path, "cutout", epochs=1, seeds=2)
    process = start(*command, LOCAL_RANK="1", RANK="1")
    studies.wait_for((tmp_path / "unfinished").exists, process)
    for code, out, err in (call(*command), finish(process)):
        assert code == 0, err
        assert "cutout" in out
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(results(tmp_path)) == 4


# --- clusters --------------------------------------------------------------------------------------------------------

ALLOCATIONS = [
    {"SLURM_NTASKS": "4"},
    {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "0"},
    {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4(x2)"},
]


@pytest.mark.parametrize("variables", ALLOCATIONS)
def test_a_process_alone_trains_in_an_allocation_of_several_tasks(tmp_path, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    studies.study(tmp_path, epochs=1).run()
    assert list(results(tmp_path)) == [("baseline", 0)]


def test_an_allocation_that_lightning_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    work = dataclasses.replace(studies.study(tmp_path), machine=Machine("cpu", devices=2))
    with pytest.raises(ValueError, match="--ntasks=2.*Use `--ntasks-per-node=2` instead"):
        work._trainer(tmp_path, Callback())


# --- stopped ---------------------------------------------------------------------------------------------------------


def test_sigterm_interrupts_once():
    stop, before = Stop(), signal.getsignal(signal.SIGTERM)
    assert stop.signal == signal.SIGINT
    with stop.listening():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert (stop.signal, signal.getsignal(signal.SIGTERM)) == (signal.SIGTERM, before)


def test_processes_but_the_first_end_at_once(monkeypatch):
    monkeypatch.setattr("torch_dropblock.compare.distributed.is_first_process", lambda: False)
    with Stop().listening():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_in_another_thread_nothing_listens():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_listen).result()


def _listen():
    with Stop().listening():
        pass


def test_lightning_does_not_handle_sigterm(tmp_path):
    """In the middle of a step, its handler would broadcast."""

    class Sees(studies.Heard):
        def step_done(self):
            assert signal.getsignal(signal.SIGTERM) == stop._interrupt
            super().step_done()

    stop, seen = Stop(), Sees()
    with stop.listening():
        studies.study(tmp_path, listener=seen, epochs=1).run()
    assert seen.steps == 3


def test_children_end_and_are_forgotten():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    procs = [child]
    launcher = SimpleNamespace(procs=procs)
    children = Children()
    children.of(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
    children.of(SimpleNamespace(strategy=SimpleNamespace(launcher=None)))
    children.end()
    assert (child.returncode, procs) == (-signal.SIGKILL, [])


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch was built without gloo")
@pytest.mark.sweep
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGTERM, (143, -15)), (signal.SIGINT, (130, 130))])
def test_two_processes_that_are_stopped_together_end(tmp_path, number, codes):
    """Lightning's own launch on two nodes: the first one's process claims the runs and writes the results."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": studies.free_port()}
    command = studies.arguments(tmp_path, seeds=100, epochs=1, nodes=2)
    started = [start(*command, NODE_RANK=str(rank), **where) for rank in range(2)]
    studies.wait_for(lambda: results(tmp_path), started[0])
    for process in started:
        os.killpg(process.pid, number)
    ended = [finish(process) for process in started]
    assert tuple(code for code, _, _ in ended) == codes
    assert not any("Traceback" in err for _, _, err in ended)
    assert "runs are not finished: the same command resumes them." in ended[0][1]
    assert {result["processes"] for result in results(tmp_path).values()} == {2}
    # up to PyTorch 2.8 Gloo says that it is connected
    assert [line for line in ended[1][1].splitlines() if not line.startswith("[Gloo]")] == []
    assert (tmp_path / "table.md").exists()
