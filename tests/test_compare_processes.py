"""How many processes train together, and what becomes of those that do not."""

import pytest

import studies
from studies import finish, results, start
from torch_dropblock.compare.processes import Machine


@pytest.mark.parametrize("name", ["devices", "nodes", "workers"])
def test_impossible_machines_are_refused(name):
    with pytest.raises(ValueError, match=f"--{name} must be an int of at least [01], got -1"):
        Machine(**{name: -1})


def test_processes_that_do_not_train_together_share_the_runs(tmp_path):
    """As with `srun` or in a pod, where each is told a rank."""
    ranks = [{"LOCAL_RANK": str(rank), "RANK": str(rank)} for rank in range(2)]
    processes = [start(*studies.arguments(tmp_path, "cutout", seeds=2), **rank) for rank in ranks]
    for process in processes:
        code, out, err = finish(process)
        assert code == 0, err
        assert "cutout" in out
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(results(tmp_path)) == 4
