"""A schedule whose layers never run while a network is trained."""

import warnings

import pytest
import torch
from torch import nn

from torch_dropblock import DropBlock2d, KeepProbSchedule, insert_dropblock

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
]


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def train(model, schedule, steps):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        schedule.step()


def test_a_trainer_that_builds_a_network_of_its_own():
    """As Ultralytics' does, from a configuration."""
    model = network()
    insert_dropblock(model, "1")
    schedule = KeepProbSchedule(model, 10)
    with pytest.warns(UserWarning, match="none of its DropBlock layers ever ran in training") as caught:
        train(network(), schedule, 8)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("wrapped", [lambda m: m, lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
@pytest.mark.parametrize("own", [False, True])
def test_a_network_that_runs(wrapped, own):
    torch._dynamo.reset()
    model = network()
    if own:
        model.insert(2, DropBlock2d(3))
    else:
        insert_dropblock(model, "1")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*never|.*ever ran")
        train(wrapped(model), KeepProbSchedule(model, 10), 5)


def test_steps_without_an_optimizer_are_no_training():
    schedule = KeepProbSchedule(nn.Sequential(DropBlock2d(3)), 100)
    for _ in range(50):
        schedule.step()


def test_replicas_of_a_layer_count_as_the_layer():
    layer = DropBlock2d(3)
    layer.eval()(torch.ones(1, 1, 4, 4))
    assert not layer.has_run
    layer.train()._replicate_for_data_parallel()(torch.ones(1, 1, 4, 4))
    assert layer.has_run
    assert not DropBlock2d(3).has_run


def test_a_compiled_optimizer_is_not_compiled_again():
    KeepProbSchedule(DropBlock2d(3), 10)
    weight, graphs = nn.Parameter(torch.ones(1)), []
    optimizer = torch.optim.SGD([weight], 0.01)
    step = torch.compile(lambda: optimizer.step(), backend=lambda graph, _: graphs.append(graph) or graph)
    for _ in range(3):
        weight.grad = torch.ones(1)
        step()
    assert len(graphs) == 1
    assert weight.item() == pytest.approx(0.97)
    torch._dynamo.reset()
