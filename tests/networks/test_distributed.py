"""Two processes on one machine: masks apart, one schedule, averaged gradients, shards that keep their layers."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from torch_dropblock import KeepProbSchedule, insert_dropblock
from torch_dropblock.networks import sites

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch was built without gloo")

RANKS, STEPS = 2, 4


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(8 * 12 * 12, 4),
    )
    insert_dropblock(model, ["0", "1.0"], block_size=3, keep_prob=0.6)
    return model


def gathered(value):
    values = [None] * RANKS
    distributed.all_gather_object(values, value)
    return values


def train_replicas(rank):
    model = network()
    alone = copy.deepcopy(model)
    parallel = DistributedDataParallel(model)
    schedule, alone_schedule = (KeepProbSchedule(m, STEPS) for m in (parallel, alone))
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    torch.manual_seed(100 + rank)
    x = torch.ones(2, 3, 12, 12)
    for step in range(STEPS + 1):
        state = torch.get_rng_state()
        output = parallel(x)
        output.sum().backward()
        torch.set_rng_state(state)
        alone.load_state_dict(model.state_dict())
        alone.zero_grad()
        alone(x).sum().backward()

        a, b = gathered(output)
        assert torch.equal(a, b) == (step == 0), "masks are alike, or drop before the schedule has begun"
        for mine, own in zip(parallel.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, torch.stack(gathered(own.grad)).mean(0))
        keep_probs = gathered([site.layer.keep_prob for site in sites.find(parallel).values()])
        assert keep_probs[0] == keep_probs[1] == pytest.approx([1 - 0.4 * step / STEPS] * 2)

        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        alone_schedule.step()
    weights = gathered([p.detach() for p in parallel.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert schedule.state_dict()["keep_prob"] == {"module.0": 0.6, "module.1.0": 0.6}


def train_shards(rank):
    model = network()
    plain = network()
    for part in (model[0], model[1], model[3], model):
        fully_shard(part, mesh=distributed.init_device_mesh("cpu", (RANKS,)))
    assert list(sites.find(model)) == ["0", "1.0"]
    schedule = KeepProbSchedule(model, STEPS, curve="constant")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(100 + rank)
    x = torch.ones(2, 3, 12, 12)
    a, b = gathered(model(x))
    assert not torch.equal(a, b)
    model.eval()
    torch.testing.assert_close(model(x), plain.eval()(x))
    model.train()
    model(x).sum().backward()
    optimizer.step()
    schedule.step()
    with pytest.raises(ValueError, match="since fully_shard has wrapped it; insert before wrapping"):
        insert_dropblock(model, "1.1")


def started(rank, where):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=RANKS)
    try:
        train_replicas(rank)
        train_shards(rank)
    finally:
        distributed.destroy_process_group()


def test_replicas_and_shards(tmp_path):
    torch.multiprocessing.spawn(started, (f"file://{tmp_path}/rendezvous",), nprocs=RANKS)
