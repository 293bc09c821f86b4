"""A schedule that is not stepped, layers that do not run: told once each, where it is so and nowhere else."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from torch_dropblock import DropBlock2d, KeepProbSchedule, insert_dropblock, mc_dropblock
from torch_dropblock.networks import watch

# torch's own compiler uses things that torch deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch.*"),
]
NOT_STEPPED = "has been stepped 0 times, so its layers stay where they are"
NOT_RUN = "its DropBlock layers have not run in training mode"


@pytest.fixture(autouse=True)
def _nothing_was_compiled():
    torch._dynamo.reset()
    counters.clear()


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), DropBlock2d(3), nn.BatchNorm2d(2), DropBlock2d(3))


def train(model, steps, schedule=None, *, accumulate=1, optimizer=torch.optim.SGD):
    optimizer = optimizer(model.parameters(), 0.01)
    for _ in range(steps):
        for _ in range(accumulate):
            model(torch.ones(2, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule:
            schedule.step()


def told(words, call, *args, **options):
    """Call, with one warning that says this."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args, **options)
    (message,) = [str(warning.message) for warning in caught]
    assert words in message
    return message


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(("total", "passes"), [(5, 6), (1000, 101)])
def test_a_schedule_that_is_never_stepped(total, passes, optimizer):
    model = network()
    schedule = KeepProbSchedule(model, total)
    message = told(NOT_STEPPED, train, model, passes + 20, optimizer=optimizer)
    assert f"the network has trained for {passes} passes, but its schedule of total_steps={total} " in message
    schedule.state_dict()


def test_nobody_has_to_hold_it():
    model = network()
    KeepProbSchedule(model, 5)
    told(NOT_STEPPED, train, model, 10)


def test_the_warning_points_to_the_training_loop():
    model = network()
    KeepProbSchedule(model, 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, 10)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("accumulate", [1, 40])
def test_a_schedule_that_is_stepped_is_silent(accumulate):
    model = network()
    schedule = KeepProbSchedule(model, 20)
    train(model, 20, schedule, accumulate=accumulate)
    schedule.state_dict()


def test_passes_without_updates_and_full_strength_are_silent():
    model = network()
    KeepProbSchedule(model, 5)
    for _ in range(30):
        model(torch.ones(2, 1, 8, 8))
    model[1].set_strength(0.5)
    with torch.no_grad(), mc_dropblock(model):
        for _ in range(30):
            model(torch.ones(2, 1, 8, 8))
    model = network()
    KeepProbSchedule(model, 5, start_step=5)
    train(model, 30)


def test_a_schedule_of_a_compiled_network_that_is_never_stepped_says_so_when_it_is_saved():
    model = network()
    schedule = KeepProbSchedule(model, 5)
    train(torch.compile(model, backend="aot_eager"), 12)
    assert "been updated 12 times, but its schedule of total_steps=5" in told(NOT_STEPPED, schedule.state_dict)
    schedule.state_dict()


def test_a_state_that_is_loaded_waits_for_a_step_of_its_own():
    model = network()
    schedule = KeepProbSchedule(model, 8)
    state = KeepProbSchedule(network(), 8, start_step=4).state_dict()
    schedule.step()
    schedule.load_state_dict(state)
    told(NOT_STEPPED, train, model, 12)


# --- layers that do not run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("total", [4, 1000])
def test_another_network_is_trained(compiled, total):
    """As a trainer does that builds its own from a description."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    trained = copy.deepcopy(model)
    insert_dropblock(model, "1")
    schedule = KeepProbSchedule(model, total)
    steps = min(total, 10) if compiled else 2
    if compiled:
        trained = torch.compile(trained, backend="aot_eager")
    message = told(NOT_RUN, train, trained, min(total, 30), schedule)
    assert message.startswith(f"the schedule has been stepped {steps} times while something trained")


def partly_called():
    model = nn.Module()
    model.used, model.unused = network(), network()
    model.forward = lambda x: model.used(x)
    return model


def test_layers_of_a_part_that_is_not_called_are_named():
    model = partly_called()
    schedule = KeepProbSchedule(model, 100)
    message = told("2 of 4 DropBlock layers have not run in training mode", train, model, 30, schedule)
    assert ": unused.1, unused.3. " in message


def test_it_can_be_an_error_that_leaves_the_schedule_where_it_was():
    model = partly_called()
    schedule = KeepProbSchedule(model, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error", watch.IdleLayerWarning)
        with pytest.raises(watch.IdleLayerWarning, match=r"unused\.1"):
            train(model, 30, schedule)
    assert schedule.steps == 1


def test_a_network_that_was_left_in_evaluation_mode():
    model = network()
    schedule = KeepProbSchedule(model, 100)
    train(model, 5, schedule)
    model.eval()
    told("or this one in evaluation mode", train, model, 5, schedule)


def test_an_evaluation_between_two_steps_is_silent():
    model = network()
    schedule = KeepProbSchedule(model, 100)
    for _ in range(5):
        train(model.train(), 1)
        model.eval()(torch.ones(2, 1, 8, 8))
        schedule.step()


def test_a_second_schedule_of_the_layers_does_not_make_the_first_think_that_they_are_idle():
    model = network()
    first = KeepProbSchedule(model, 100)
    second = KeepProbSchedule(model, 100)
    train(model, 5, first)
    train(model, 5, second)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_layers_that_run_are_silent(compiled, frozen):
    model = network()
    schedule = KeepProbSchedule(model, 100)
    whole = nn.Sequential(model.requires_grad_(not frozen), nn.Conv2d(2, 1, 1))
    train(torch.compile(whole, backend="aot_eager", fullgraph=True) if compiled else whole, 20, schedule)


def test_layers_with_a_drop_of_their_own_are_silent():
    class Own(DropBlock2d):
        def drop(self, input, training, inplace):
            return input * 0.5 if training else input

    model = nn.Sequential(nn.Conv2d(1, 2, 3), Own(3))
    train(model, 20, KeepProbSchedule(model, 100))


def test_a_curve_that_is_looked_at_is_silent():
    schedule = KeepProbSchedule(network(), 100)
    strengths = [(schedule.step(), schedule.strength) for _ in range(100)]
    assert len(strengths) == 100
    schedule = KeepProbSchedule(model := network(), 200)
    for _ in range(50):
        schedule.step()  # up to where a training was
    train(model, 50, schedule)


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_compiled_code_does_not_see_it():
    """One graph, while a schedule begins and counts, and another schedule begins."""
    model = network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        train(compiled, 15, KeepProbSchedule(model, 100))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_the_compiled_backward_of_eager_steps_before_it():
    model = network()
    schedule = KeepProbSchedule(model, 100)
    train(model, 3, schedule)
    train(torch.compile(model, backend="aot_eager", fullgraph=True), 20, schedule)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_has_none(copied):
    model = network()
    other, schedule = copied((model, KeepProbSchedule(model, 100)))
    assert other[1].record is None
    train(other, 2, schedule)
    assert schedule.stats()["dropped"] == 0.0 or schedule.stats()["dropped/1"] > 0
    told("1 of 2 DropBlock layers have not run", train, nn.Sequential(other[0], other[1]), 1, schedule)
    assert model[1].record not in (None, other[1].record)


def test_lazy_parameters_and_those_of_inference_mode():
    model = nn.Sequential(nn.LazyConv2d(2, 3), DropBlock2d(3))
    schedule = KeepProbSchedule(model, 100)
    model(torch.ones(2, 1, 8, 8))
    train(model, 15, schedule)
    with torch.inference_mode():
        model = network()
    KeepProbSchedule(model, 100).step()


def test_the_nodes_of_autograd_are_counted():
    """PyTorch's number, without which layers that do not run would not be noticed."""
    before = watch._autograd_nodes()
    assert watch._autograd_nodes() == before
    list(itertools.accumulate(torch.ones(3, requires_grad=True)))
    assert watch._autograd_nodes() > before
