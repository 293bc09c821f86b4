"""The ramp, its curves, exact resume, and what must not advance it."""

import copy
import io
import math
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from torch_dropblock import DropBlock2d, KeepProbSchedule, insert_dropblock, mc_dropblock
from torch_dropblock.networks import sites
from torch_dropblock.networks.schedule import CURVES

TARGETS = {"1": 0.9, "3": 0.6}


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        DropBlock2d(3, keep_prob=TARGETS["1"]),
        nn.Conv2d(8, 8, 3),
        DropBlock2d(3, keep_prob=TARGETS["3"]),
        nn.Flatten(),
        nn.LazyLinear(4),
    )


def keep_probs(model):
    return [site.layer.keep_prob for site in sites.find(model).values()]


def test_the_papers_ramp():
    """keep_prob(t) = 1 - t / T * (1 - keep_prob), from the first step to the last, and then no further."""
    model = network()
    schedule = KeepProbSchedule(model, 10)
    for t in range(10):
        assert schedule.progress == t / 10
        assert keep_probs(model) == pytest.approx([1 - t / 10 * (1 - target) for target in TARGETS.values()])
        schedule.step()
    assert keep_probs(model) == list(TARGETS.values())


def test_steps_past_the_last_are_told_once_and_change_nothing():
    model = network()
    schedule = KeepProbSchedule(model, 3)
    for _ in range(3):
        schedule.step()
    with pytest.warns(UserWarning, match=r"stepped 4 times, more than its total_steps=3: .*epochs \* len\(loader\)"):
        schedule.step()
    schedule.step()
    assert (schedule.steps, schedule.progress) == (5, 1.0)
    assert keep_probs(model) == list(TARGETS.values())


def test_repr():
    schedule = KeepProbSchedule(network(), 10, curve="cosine")
    schedule.step()
    assert repr(schedule) == "KeepProbSchedule(Sequential, total_steps=10, curve='cosine', steps=1, layers=2)"

    class Own:
        def __call__(self, progress):
            return progress

    assert "curve='Own'" in repr(KeepProbSchedule(network(), 10, curve=Own()))


@pytest.mark.parametrize(
    ("curve", "strengths"),
    [
        ("linear", [0, 0.25, 0.5, 0.75, 1]),
        ("cosine", [0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1]),
        ("constant", [1, 1, 1, 1, 1]),
        ("step", [0, 0, 1, 1, 1]),
        (lambda progress: progress**2, [0, 1 / 16, 1 / 4, 9 / 16, 1]),
    ],
)
def test_curves(curve, strengths):
    model = network()
    schedule = KeepProbSchedule(model, 4, curve=curve)
    for step, strength in enumerate(strengths):
        if step:
            schedule.step()
        assert schedule.strength == pytest.approx(strength)
        assert keep_probs(model) == pytest.approx([1 - strength * (1 - target) for target in TARGETS.values()])


@pytest.mark.parametrize("curve", CURVES.values())
def test_curves_end_at_full_strength_and_stay_in_range(curve):
    assert curve(1.0) == 1.0
    assert all(0.0 <= curve(i / 1000) <= 1.0 for i in range(1001))


def test_start_step():
    model, other = network(), network()
    schedule = KeepProbSchedule(model, 10)
    for _ in range(4):
        schedule.step()
    KeepProbSchedule(other, 10, start_step=4)
    assert keep_probs(other) == keep_probs(model)


def test_inserted_layers_and_those_of_the_network():
    model = network()
    insert_dropblock(model, "2", keep_prob=0.8)
    schedule = KeepProbSchedule(model, 2)
    schedule.step()
    assert keep_probs(model) == pytest.approx([0.95, 0.9, 0.8])


def test_what_is_assigned_becomes_the_target():
    model = network()
    schedule = KeepProbSchedule(model, 10, start_step=5)
    model[1].keep_prob = 0.5
    schedule.step()
    assert model[1].keep_prob == pytest.approx(1 - 0.6 * 0.5)
    assert model[1].target_keep_prob == 0.5


def test_blocks_grow_with_the_strength():
    """From 1 unit to each layer's own, rounded down."""
    model = network()
    model[1].block_size, model[3].block_size = 7, ("50%", 4)
    schedule = KeepProbSchedule(model, 4, grow_blocks=True)
    assert "grow_blocks=True" in repr(schedule)
    expected = [(1, ("0.0001%", 1)), (1, ("12.5%", 1)), (3, ("25%", 2)), (5, ("37.5%", 3)), (7, ("50%", 4))]
    for t, sizes in enumerate(expected):
        if t:
            schedule.step()
        assert (model[1].block_size, model[3].block_size) == sizes
        assert keep_probs(model) == pytest.approx([1 - t / 4 * (1 - target) for target in TARGETS.values()])
    resumed = network()
    other = KeepProbSchedule(resumed, 4, grow_blocks=True)
    resumed[1].block_size = 7  # before a step, which takes it for the layer's own
    other.load_state_dict(saved(KeepProbSchedule(model, 4, start_step=2, grow_blocks=True).state_dict()))
    assert (other.steps, resumed[1].block_size, resumed[3].block_size) == (2, 3, 1)
    KeepProbSchedule(model, 4, start_step=2)
    assert (model[1].block_size, model[3].block_size) == (7, ("50%", 4))


def test_a_state_that_grows_blocks_warns_a_schedule_that_does_not():
    state = KeepProbSchedule(network(), 10, grow_blocks=True).state_dict()
    schedule = KeepProbSchedule(network(), 10)
    with pytest.warns(UserWarning, match="built with grow_blocks=False, the state with True; it goes on with its own"):
        schedule.load_state_dict(state)
    del state["grow_blocks"]  # as version 0.1.0 saved it
    schedule.load_state_dict(state)
    with pytest.raises(TypeError, match="^grow_blocks must be True or False"):
        KeepProbSchedule(network(), 10, grow_blocks=1)


def test_a_second_schedule_starts_from_the_same_targets():
    model = network()
    KeepProbSchedule(model, 10, start_step=3)
    KeepProbSchedule(model, 10, start_step=10)
    assert keep_probs(model) == list(TARGETS.values())


def test_nothing_but_step_advances_it():
    model = network()
    model(torch.randn(2, 3, 16, 16))
    schedule = KeepProbSchedule(model, 10, start_step=5)
    before = schedule.state_dict(), keep_probs(model)
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    model.eval()(x)
    model.train()(x)
    checkpoint(model, x, use_reentrant=False).sum().backward()
    with mc_dropblock(model):
        model(x)
    assert (schedule.state_dict(), keep_probs(model)) == before


# --- statistics --------------------------------------------------------------------------------------------------


def test_stats_are_what_was_dropped():
    model = network()
    outputs = {}
    for name in TARGETS:
        model[int(name)].register_forward_hook(lambda layer, args, output, name=name: outputs.update({name: output}))
    schedule = KeepProbSchedule(model, 10, start_step=5)
    assert schedule.stats() == pytest.approx({"keep_prob": 0.875, "keep_prob/1": 0.95, "keep_prob/3": 0.8})
    model(torch.randn(8, 3, 16, 16))
    zeros = {name: (output == 0).sum().item() for name, output in outputs.items()}
    stats = schedule.stats()
    assert all(type(value) is float for value in stats.values())
    for name, output in outputs.items():
        assert stats[f"dropped/{name}"] == pytest.approx(zeros[name] / output.numel())
    units = sum(output.numel() for output in outputs.values())
    assert stats["dropped"] == pytest.approx(sum(zeros.values()) / units)
    schedule.step()
    assert schedule.stats() == stats | {f"keep_prob{n}": schedule.stats()[f"keep_prob{n}"] for n in ("", "/1", "/3")}


def test_stats_forget_passes_before_the_last_step():
    model = network()
    schedule = KeepProbSchedule(model, 10, start_step=5)
    model(torch.randn(2, 3, 16, 16))
    schedule.step()
    assert "dropped" in schedule.stats()
    schedule.step()
    assert "dropped" not in schedule.stats()


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*", "ignore:.*:FutureWarning:torch.*")
def test_stats_of_compiled_layers_are_their_keep_probs():
    model = network()
    model(torch.randn(2, 3, 16, 16))
    schedule = KeepProbSchedule(model, 10, start_step=5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        compiled(torch.randn(2, 3, 16, 16)).sum().backward()
        assert set(schedule.stats()) == {"keep_prob", "keep_prob/1", "keep_prob/3"}
        schedule.step()


def test_stats_of_inserted_layers_and_of_layers_of_a_copy():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    insert_dropblock(model, "0", block_size=3, keep_prob=0.5)
    schedule = KeepProbSchedule(model, 4, curve="constant")
    model[0] = copy.deepcopy(model[0])  # as some wrappers do
    schedule.step()
    model(torch.ones(4, 3, 16, 16))
    assert schedule.stats()["dropped/0"] == pytest.approx(0.5, abs=0.15)


# --- saving ------------------------------------------------------------------------------------------------------


def saved(state):
    """The state through a file, as a checkpoint that is loaded without code of its own."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state():
    model = network()
    schedule = KeepProbSchedule(model, 10)
    for _ in range(3):
        schedule.step()
    settings = {"total_steps": 10, "curve": "linear", "grow_blocks": False}
    assert schedule.state_dict() == {"steps": 3, **settings, "keep_prob": TARGETS}
    resumed = network()
    other = KeepProbSchedule(resumed, 10)
    other.load_state_dict(saved(schedule.state_dict()))
    for _ in range(7):
        assert keep_probs(resumed) == keep_probs(model)
        assert other.state_dict() == schedule.state_dict()
        schedule.step()
        other.step()


class Wrapped(nn.Module):
    def __init__(self, name, module):
        super().__init__()
        self.add_module(name, module)

    def forward(self, x):
        return next(self.children())(x)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda m: m, lambda m: torch.compile(m, backend="eager")),
        (lambda m: torch.compile(m, backend="eager"), lambda m: m),
        (lambda m: m, nn.DataParallel),
        (nn.DataParallel, lambda m: torch.compile(m, backend="eager")),
        (lambda m: m, lambda m: Wrapped("net", m)),
        (lambda m: Wrapped("net", m), lambda m: m),
        (lambda m: m, lambda m: Wrapped("a", Wrapped("b", m))),
        (lambda m: nn.DataParallel(Wrapped("net", m)), lambda m: m),
        (lambda m: Wrapped("model", m), lambda m: Wrapped("net", Wrapped("inner", m))),
    ],
)
def test_names_that_gained_or_lost_a_prefix(before, after):
    schedule = KeepProbSchedule(before(network()), 10, start_step=7)
    model = network()
    resumed = KeepProbSchedule(after(model), 10)
    resumed.load_state_dict(saved(schedule.state_dict()))
    assert resumed.steps == 7
    assert [model[1].target_keep_prob, model[3].target_keep_prob] == list(TARGETS.values())
    assert model[3].keep_prob == pytest.approx(1 - 0.7 * 0.4)


class Adapter(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x):
        return self.base_layer(x)


def in_adapters(model):
    """Some of the modules, within a wrapper of the whole, as PEFT does."""
    model = Wrapped("base_model", Wrapped("model", model))
    inner = model.base_model.model
    inner[1], inner[2] = Adapter(inner[1]), Adapter(inner[2])
    return model


@pytest.mark.filterwarnings("ignore:.*act inside the modules")
@pytest.mark.parametrize("before", [lambda m: m, in_adapters, lambda m: Wrapped("net", m)])
@pytest.mark.parametrize("after", [lambda m: m, in_adapters, lambda m: torch.compile(in_adapters(m), backend="eager")])
def test_names_that_gained_or_lost_adapters(before, after):
    def build():
        model = network()
        insert_dropblock(model, ["0", "2"], keep_prob=0.8)
        return model

    schedule = KeepProbSchedule(before(build()), 10, start_step=10)
    state = saved(schedule.state_dict())
    state["keep_prob"] = dict(reversed(state["keep_prob"].items()))  # a file may have any order
    model = build()
    resumed = KeepProbSchedule(after(model), 10)
    resumed.load_state_dict(state)
    assert sorted(keep_probs(model)) == [0.6, 0.8, 0.8, 0.9]
    assert resumed.steps == 10


def test_a_training_that_ran_past_its_end_goes_on_there():
    schedule = KeepProbSchedule(network(), 4, curve=lambda progress: 1 - (1 - progress) ** 2, start_step=5)
    with pytest.warns(UserWarning, match="more than its total_steps=4"):
        schedule.step()
    model = network()
    other = KeepProbSchedule(model, 4, curve=schedule.curve)
    other.load_state_dict(schedule.state_dict())
    assert (other.steps, other.progress) == (6, 1.0)
    assert keep_probs(model) == list(TARGETS.values())


def test_a_step_that_fails_does_not_count():
    model = network()
    schedule = KeepProbSchedule(model, 10)
    schedule.step()
    model[1] = nn.Identity()
    with pytest.raises(RuntimeError, match="were lost"):
        schedule.step()
    assert schedule.steps == 1


def test_a_state_of_other_layers_changes_nothing():
    schedule = KeepProbSchedule(network(), 10, start_step=7)
    state = schedule.state_dict()
    del state["keep_prob"]["3"]
    state["keep_prob"]["9"] = 0.5
    model = network()
    other = KeepProbSchedule(model, 10)
    with pytest.raises(ValueError, match="only in the model: '3'; only in the state: '9'"):
        other.load_state_dict(state)
    assert other.steps == 0
    assert keep_probs(model) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: None, TypeError),
        (lambda state: {"steps": 1}, TypeError),
        (lambda state: state | {"steps": -1}, ValueError),
        (lambda state: state | {"total_steps": 0}, ValueError),
        (lambda state: state | {"keep_prob": dict.fromkeys(TARGETS, 2.0)}, ValueError),
        (lambda state: state | {"keep_prob": None}, TypeError),
        (lambda state: state | {"keep_prob": dict(enumerate(TARGETS.values()))}, TypeError),
        (lambda state: state | {"keep_prob": {("0",): 0.9}}, TypeError),
    ],
)
def test_a_state_that_is_none(change, error):
    schedule = KeepProbSchedule(network(), 10)
    before = schedule.state_dict()
    with pytest.raises(error):
        schedule.load_state_dict(change(before))
    assert schedule.state_dict() == before


def test_a_state_of_another_length_or_curve_warns():
    schedule = KeepProbSchedule(network(), 10, start_step=5)
    other = KeepProbSchedule(network(), 20, curve="cosine")
    with pytest.warns(UserWarning, match="the schedule was built with") as caught:
        other.load_state_dict(schedule.state_dict())
    assert [str(warning.message).rpartition("; ")[2] for warning in caught] == [
        "it goes on with that of the state",
        "it goes on with its own",
    ]
    assert other.curve is CURVES["cosine"]
    assert other.total_steps == 10
    assert other.progress == 0.5


def test_a_state_of_other_keep_probs_warns_and_holds():
    schedule = KeepProbSchedule(network(), 10, start_step=10)
    model = network()
    model[3].keep_prob = 0.2
    other = KeepProbSchedule(model, 10)
    with pytest.warns(UserWarning, match=r"the schedule was built with keep_prob=\{'1': 0.9, '3': 0.2\}"):
        other.load_state_dict(schedule.state_dict())
    assert keep_probs(model) == list(TARGETS.values())


def test_a_curve_that_fails_changes_nothing():
    model, highest = network(), 1.0
    other = KeepProbSchedule(model, 10, curve=lambda p: highest * p)
    highest = 2.0
    state = KeepProbSchedule(network(), 10, start_step=8).state_dict() | {"curve": "<lambda>"}
    state["keep_prob"] = dict.fromkeys(TARGETS, 0.1)
    with pytest.raises(ValueError, match=r"the strength that curve returned for progress 0\.8"):
        other.load_state_dict(state)
    assert (other.steps, keep_probs(model)) == (0, [1.0, 1.0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_model_and_schedule(copied):
    model = network()
    schedule = KeepProbSchedule(model, 10, start_step=5)
    other, other_schedule = copied((model, schedule))
    other_schedule.step()
    assert keep_probs(other) == pytest.approx([0.94, 0.76])
    assert keep_probs(model) == pytest.approx([0.95, 0.8])


def train(steps, stop_at=None, checkpoint=None):
    """A plain loop over steps, from a checkpoint if there is one: the weights at the end, or a checkpoint."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 4))
    insert_dropblock(model, "1", block_size=3, keep_prob=0.7)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = KeepProbSchedule(model, steps)
    first = 0
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        torch.set_rng_state(checkpoint["random"])
        first = checkpoint["step"]
    for step in range(first, steps):
        if step == stop_at:
            return {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "random": torch.get_rng_state(),
                "step": step,
            }
        x = torch.randn(8, 3, 16, 16)
        nn.functional.cross_entropy(model(x), torch.randint(4, (8,))).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.state_dict()


@pytest.mark.parametrize("stop_at", [1, 7, 19])
def test_a_loop_that_was_killed_and_resumed_gives_the_same_weights(stop_at):
    whole = train(20)
    resumed = train(20, checkpoint=saved(train(20, stop_at=stop_at)))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((nn.ReLU(), 10), {}, ValueError, "ReLU has no DropBlock layer; put some in first"),
        ((lambda x: x, 10), {}, TypeError, "model must be a torch.nn.Module"),
        ((network(), 0), {}, ValueError, "total_steps must be an int of at least 1, got 0"),
        ((network(), 10.0), {}, TypeError, "total_steps must be an int of at least 1, got 10.0 of type float"),
        ((network(), 10), {"start_step": -1}, ValueError, "start_step must be an int of at least 0"),
        ((network(), 10), {"curve": "fast"}, ValueError, "curve must be one of linear, cosine, constant, step"),
        ((network(), 10), {"curve": 3}, TypeError, "curve must be one of"),
        ((network(), 10), {"curve": lambda p: None}, TypeError, "the strength that curve returned for progress 0 must"),
        (
            (network(), 1000),
            {"curve": lambda p: 1.2 * p},
            ValueError,
            r"for progress 0\.84 must be a number in \[0, 1\]",
        ),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        KeepProbSchedule(*arguments, **options)


def test_layers_that_are_off_while_the_model_trains_are_told_once():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    insert_dropblock(model, ["1", "2"])
    model[1].eval()
    schedule = KeepProbSchedule(model, 10)
    with pytest.warns(UserWarning, match=r"1 of its 2 DropBlock layers are not and drop nothing: 1\."):
        schedule.step()
    schedule.step()
    model[2].eval()
    with pytest.warns(UserWarning, match=r"2 of its 2 DropBlock layers are not and drop nothing: 1, 2\."):
        schedule.step()
    schedule.step()
    model[1].train()
    schedule.step()
    model[1].eval()
    schedule.step()
    model.eval()
    KeepProbSchedule(model, 10).step()


def test_layers_that_were_lost_are_an_error():
    """All of them, before the schedule; and one that no record tells of, after it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    insert_dropblock(model, "1")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(RuntimeError, match=r": 1\. .*insert after converting"):
        KeepProbSchedule(model, 10)

    model = network()
    insert_dropblock(model, "2")
    traced = fx.symbolic_trace(model)
    schedule = KeepProbSchedule(traced, 10)
    schedule.step()
    traced.set_submodule("2", nn.Conv2d(8, 8, 3))
    with pytest.raises(RuntimeError, match=r": 2\. .*insert after converting"):
        schedule.step()


def named(**layers):
    return nn.Sequential(OrderedDict(layers))


def test_a_curve_is_tried_at_its_end():
    with pytest.raises(ValueError, match="for progress 1 must be a number"):
        KeepProbSchedule(DropBlock2d(3), 10, curve=lambda progress: 2.0 if progress == 1.0 else progress)


def test_copies_of_layers_that_no_record_knows_are_followed():
    model = network()
    schedule = KeepProbSchedule(model, 10)
    model[1] = copy.deepcopy(model[1])
    model[3] = Wrapped("net", copy.deepcopy(model[3]))
    schedule.step()
    assert keep_probs(model) == pytest.approx([0.99, 0.96])
    del model[1]
    with pytest.raises(RuntimeError, match=r": 1\. "):
        schedule.step()


@pytest.mark.parametrize(
    "model",
    [lambda: named(b=DropBlock2d(3)), lambda: named(a=DropBlock2d(3), module=named(a=DropBlock2d(3)))],
)
def test_a_state_whose_names_fit_no_layer_or_two_is_refused(model):
    state = KeepProbSchedule(named(a=DropBlock2d(3)), 10).state_dict()
    schedule = KeepProbSchedule(model(), 10)
    with pytest.raises(ValueError, match="other DropBlock layers"):
        schedule.load_state_dict(state)
