"""The callback for Lightning, under both of its names: real trainings of a tiny network on the CPU."""

import copy
import importlib
import itertools
import json
import pickle
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from torch_dropblock import insert_dropblock

FRAMEWORKS = ["lightning.pytorch", "pytorch_lightning"]
for name in FRAMEWORKS:
    pytest.importorskip(name)

from torch_dropblock.integrations.lightning import (  # noqa: E402
    DropBlockCallback,
    _callback_of_each_framework,
    _make_iterator_again,
)

pytestmark = [
    # Lightning's own use of PyTorch
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    # advice about speed, logging and data, which such small trainings do not follow
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # a training that goes on writes its checkpoints beside those of the first
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    """So little work takes longer when it is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[FRAMEWORKS[0], pytest.param(FRAMEWORKS[1], marks=pytest.mark.sweep)])
def pl(request):
    """The framework: they differ in names alone, so that one test of the second says that it works."""
    return importlib.import_module(request.param)


def data(batches=4, batch_size=2):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(batches * batch_size, 3, 16, 16, generator=generator)
    return TensorDataset(images, torch.randint(4, (len(images),), generator=generator))


def network(pl, *, layers=True, optimizers=1, loader=None):
    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.LazyLinear(4)
            )
            self.net(torch.zeros(2, 3, 16, 16))
            if layers:
                insert_dropblock(self.net, ["1", "3"], block_size=3, keep_prob=0.7)
            self.automatic_optimization = optimizers == 1
            self.strengths = []

        def training_step(self, batch, batch_idx):
            schedules = [getattr(callback, "schedule", None) for callback in self.trainer.callbacks]
            self.strengths.append([schedule.strength for schedule in schedules if schedule])
            loss = nn.functional.cross_entropy(self.net(batch[0] + random.random() + np.random.rand()), batch[1])
            if not self.automatic_optimization and batch_idx % 2:
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
            return loss

        def validation_step(self, batch, batch_idx):
            self.net(batch[0])

        def predict_step(self, batch, batch_idx):
            return self.net(batch[0])

        test_step = validation_step

        def train_dataloader(self):
            """Draws, as what makes or splits a dataset does."""
            order = torch.randperm(8)
            dataset = TensorDataset(*(tensor[order] for tensor in data().tensors))
            return DataLoader(dataset, batch_size=2, shuffle=True) if loader is None else loader

        def val_dataloader(self):
            return DataLoader(data(2), batch_size=2)

        def configure_optimizers(self):
            made = [torch.optim.SGD(self.parameters(), 0.05, momentum=0.9) for _ in range(optimizers)]
            return made[0] if optimizers == 1 else made

    return Net()


def trainer(pl, path, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"enable_checkpointing": False, "max_epochs": 2} | quiet | options
    return pl.Trainer(default_root_dir=path, callbacks=list(callbacks), **options)


def strengths(net):
    return list(itertools.chain(*net.strengths))


# --- the schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_it_steps_after_each_training_batch_and_at_no_other_time(framework, tmp_path):
    pl = importlib.import_module(framework)
    net, callback = network(pl), DropBlockCallback()
    fit = trainer(pl, tmp_path, callback, val_check_interval=2)
    fit.fit(net)
    assert strengths(net) == [i / 8 for i in range(8)]
    fit.validate(net, verbose=False)
    fit.test(net, net.val_dataloader(), verbose=False)
    fit.predict(net, net.val_dataloader())
    assert callback.schedule.steps == 8
    assert [layer.layer.keep_prob for layer in _hooks(net)] == [0.7, 0.7]


def _hooks(net):
    return [hook for module in net.modules() for hook in module._forward_hooks.values() if hasattr(hook, "layer")]


def test_accumulated_batches_are_one_step(pl, tmp_path):
    net = network(pl, loader=DataLoader(data(5), batch_size=2))
    trainer(pl, tmp_path, DropBlockCallback(), accumulate_grad_batches=2).fit(net)
    assert strengths(net) == [i / 6 for i in (0, 0, 1, 1, 2, 3, 3, 4, 4, 5)]


def test_several_optimizers_are_one_step_and_batches_without_one_are_none(pl, tmp_path):
    net, callback = network(pl, optimizers=2), DropBlockCallback(total_steps=4, curve="cosine")
    fit = trainer(pl, tmp_path, callback)
    fit.fit(net)
    assert fit.global_step == 8
    assert callback.schedule.steps == 4
    assert strengths(net)[::2] == strengths(net)[1::2]
    assert len(set(strengths(net))) == 4


def test_one_process_trains_as_it_does_without_the_callback(pl, tmp_path):
    def weights(*callbacks):
        pl.seed_everything(1, verbose=False)
        net = network(pl)
        trainer(pl, tmp_path, *callbacks).fit(net)
        return bits(net), torch.get_rng_state().tolist()

    assert weights(DropBlockCallback(curve="constant")) == weights()


def test_a_second_fit_of_a_trainer_goes_on_and_a_new_trainer_begins_anew(pl, tmp_path):
    net, callback = network(pl), DropBlockCallback()
    fit = trainer(pl, tmp_path, callback, max_epochs=1)
    fit.fit(net)
    fit.fit_loop.max_epochs = 2
    fit.fit(net)
    assert strengths(net) == [0, 0.25, 0.5, 0.75, 0.5, 0.625, 0.75, 0.875]
    net.strengths.clear()
    trainer(pl, tmp_path, callback, max_epochs=1).fit(net)
    assert strengths(net) == [0, 0.25, 0.5, 0.75]


def test_fast_dev_run_and_validation_alone(pl, tmp_path):
    net, callback = network(pl), DropBlockCallback()
    trainer(pl, tmp_path, callback).validate(net, verbose=False)
    assert callback.schedule is None
    trainer(pl, tmp_path, callback, fast_dev_run=True).fit(net)
    assert strengths(net) == [0]
    assert callback.schedule.strength == 1


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_network_without_layers_is_refused(pl, tmp_path):
    with pytest.raises(ValueError, match="Net has no DropBlock layer; put some in first"):
        trainer(pl, tmp_path, DropBlockCallback()).fit(network(pl, layers=False))


def test_layers_that_a_conversion_lost_are_missed(pl, tmp_path):
    net = network(pl)
    nn.SyncBatchNorm.convert_sync_batchnorm(net)  # what Trainer(sync_batchnorm=True) does
    with pytest.raises(RuntimeError, match="insert after converting"):
        trainer(pl, tmp_path, DropBlockCallback(), limit_val_batches=0).fit(net)


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.cycle(data())


@pytest.mark.parametrize("options", [{}, {"max_epochs": -1}])
def test_unknown_steps_are_refused(pl, tmp_path, options):
    net = network(pl, loader=DataLoader(Endless(), batch_size=2))
    with pytest.raises(ValueError, match=r"give it max_steps, or DropBlockCallback its total_steps"):
        trainer(pl, tmp_path, DropBlockCallback(), **options).fit(net)
    trainer(pl, tmp_path, DropBlockCallback(), max_steps=2).fit(net)
    trainer(pl, tmp_path, DropBlockCallback(total_steps=4), limit_train_batches=2).fit(net)
    assert strengths(net) == [0, 0.5, 0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("options", "message"), [({"curve": "sine"}, "curve must be one of"), ({"total_steps": 0}, "total_steps must be")]
)
def test_bad_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        DropBlockCallback(**options)


def test_without_lightning_the_error_names_the_extra(monkeypatch):
    for name in FRAMEWORKS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "torch-dropblock\[lightning\]"'):
        _callback_of_each_framework()


@pytest.mark.parametrize(("absent", "present"), [FRAMEWORKS, FRAMEWORKS[::-1]])
def test_one_of_the_frameworks_is_enough(monkeypatch, absent, present):
    monkeypatch.setitem(sys.modules, absent, None)
    assert _callback_of_each_framework().__bases__ == (sys.modules[present].Callback,)


def test_a_lightning_that_keeps_its_iterators_elsewhere_is_warned_of():
    with pytest.warns(UserWarning, match="this version of Lightning is not known"):
        _make_iterator_again(SimpleNamespace(fit_loop=None))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_it_is_a_callback_of_both_frameworks(framework):
    assert issubclass(DropBlockCallback, importlib.import_module(framework).Callback)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_copy_has_the_options_and_not_the_training(pl, tmp_path, duplicate):
    callback = DropBlockCallback(curve="cosine", total_steps=8, grow_blocks=True)
    trainer(pl, tmp_path, callback).fit(network(pl))
    assert callback.schedule.grow_blocks
    twin = duplicate(callback)
    assert (twin.curve, twin.total_steps, twin.grow_blocks) == ("cosine", 8, True)
    assert (twin.schedule, twin.state_dict()) == (None, {})


# --- going on from a checkpoint --------------------------------------------------------------------------------------


def bits(net):
    return [value.tolist() for value in net.state_dict().values()]


SAVES = {
    "epoch's end": ({}, {}),
    "epoch's end, no validation": ({}, {"limit_val_batches": 0}),
    "validation's end": ({"save_on_train_epoch_end": False}, {}),
    # without max_epochs: Lightning counts the epoch of such a checkpoint once more
    "max_steps": ({}, {"max_steps": 12, "max_epochs": -1}),
    "last batch": ({"every_n_train_steps": 4}, {"limit_val_batches": 0}),
}


@pytest.mark.parametrize(
    ("save", "workers"),
    [
        *((save, 0) for save in SAVES),
        ("epoch's end", 2),
        *(pytest.param(save, 2, marks=pytest.mark.sweep) for save in SAVES if save != "epoch's end"),
    ],
)
def test_a_training_that_goes_on_ends_bit_for_bit_as_one_that_was_not_interrupted(pl, tmp_path, save, workers):
    def fit(saved, ckpt_path=None):
        pl.seed_everything(1, workers=True, verbose=False)
        net = network(pl)
        if workers:
            context = {"num_workers": workers, "multiprocessing_context": "fork"}
            net.train_dataloader = lambda: DataLoader(data(), batch_size=2, shuffle=True, **context)
        saving = pl.callbacks.ModelCheckpoint(tmp_path / saved, save_top_k=-1, **SAVES[save][0])
        options = {"max_epochs": 3, "enable_checkpointing": True} | SAVES[save][1]
        trainer(pl, tmp_path, DropBlockCallback(), saving, **options).fit(net, ckpt_path=ckpt_path)
        draws = random.random(), np.random.rand(), torch.rand(()).item()
        return bits(net), draws, strengths(net)

    weights, draws, all_strengths = fit("whole")
    first = min((tmp_path / "whole").iterdir())
    assert "step=4" in first.name
    assert fit("resumed", first) == (weights, draws, all_strengths[4:])
    if save != "last batch":  # of which Lightning repeats an epoch when it goes on twice
        assert fit("resumed again", min((tmp_path / "resumed").iterdir()))[:2] == (weights, draws)


def test_a_checkpoint_of_a_finished_training_is_gone_on_with(pl, tmp_path):
    def fit(epochs, ckpt_path=None):
        pl.seed_everything(1, verbose=False)
        net = network(pl)
        fit = trainer(pl, tmp_path, DropBlockCallback(total_steps=12), max_epochs=epochs)
        fit.fit(net, ckpt_path=ckpt_path)
        return net, fit

    whole, _ = fit(3)
    fit(2)[1].save_checkpoint(tmp_path / "finished.ckpt")
    torch.load(tmp_path / "finished.ckpt", weights_only=True)
    assert bits(fit(3, tmp_path / "finished.ckpt")[0]) == bits(whole)


@pytest.mark.filterwarnings("ignore:the training ended after 4 steps")
def test_an_epoch_that_ends_early_is_gone_on_with(pl, tmp_path):
    def fit(saved, ckpt_path=None):
        pl.seed_everything(1, verbose=False)
        net = network(pl)
        net.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == 2 else None
        saving = pl.callbacks.ModelCheckpoint(tmp_path / saved, save_top_k=-1)
        options = {"limit_val_batches": 0, "enable_checkpointing": True}
        trainer(pl, tmp_path, DropBlockCallback(), saving, **options).fit(net, ckpt_path=ckpt_path)
        return bits(net)

    assert fit("whole") == fit("resumed", min((tmp_path / "whole").iterdir()))


class ResumableLoader:
    """Batches in an order of its own, and one place in it: what torchdata's StatefulDataLoader is."""

    def __init__(self):
        self.epoch, self.position = -1, 0

    def __len__(self):
        return 4

    def __iter__(self):
        if self.position in (0, 4):
            self.epoch, self.position = self.epoch + 1, 0
        order = torch.randperm(8, generator=torch.Generator().manual_seed(self.epoch)).split(2)
        while self.position < 4:
            self.position += 1
            yield data()[order[self.position - 1]]

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]


def test_in_the_middle_of_an_epoch_masks_and_strength_go_on_if_the_loader_does(pl, tmp_path):
    def fit(saved, ckpt_path=None):
        net = network(pl, loader=ResumableLoader())
        saving = pl.callbacks.ModelCheckpoint(tmp_path / saved, save_top_k=-1, every_n_train_steps=2)
        options = {"limit_val_batches": 0, "enable_checkpointing": True}
        trainer(pl, tmp_path, DropBlockCallback(), saving, **options).fit(net, ckpt_path=ckpt_path)
        return bits(net), strengths(net)

    weights, all_strengths = fit("whole")
    first = min((tmp_path / "whole").iterdir())
    assert "step=2" in first.name
    assert fit("resumed", first) == (weights, all_strengths[2:])


@pytest.mark.filterwarnings("ignore:the training ended after 6 steps")
@pytest.mark.parametrize("optimizers", [1, 3])
def test_a_checkpoint_without_the_callback_starts_at_the_trainers_step(pl, tmp_path, optimizers):
    fit = trainer(pl, tmp_path, max_epochs=1)
    fit.fit(network(pl, optimizers=optimizers))
    fit.save_checkpoint(tmp_path / "old.ckpt")
    net = network(pl, optimizers=optimizers)
    trainer(pl, tmp_path, DropBlockCallback()).fit(net, ckpt_path=tmp_path / "old.ckpt")
    assert strengths(net) == ([0.5, 0.625, 0.75, 0.875] if optimizers == 1 else [0.5, 0.5, 0.625, 0.625])


def test_a_checkpoint_that_was_evaluated_does_not_reach_the_next_training(pl, tmp_path):
    first = trainer(pl, tmp_path, DropBlockCallback())
    first.fit(network(pl))
    first.save_checkpoint(tmp_path / "first.ckpt")
    net = network(pl)
    fit = trainer(pl, tmp_path, DropBlockCallback())
    fit.validate(net, ckpt_path=tmp_path / "first.ckpt", verbose=False)
    fit.fit(net)
    assert strengths(net) == [i / 8 for i in range(8)]


@pytest.mark.filterwarnings("ignore:the schedule has been stepped 5 times")
def test_other_total_steps_are_warned_of(pl, tmp_path):
    first = trainer(pl, tmp_path, DropBlockCallback(), max_epochs=1)
    first.fit(network(pl))
    first.save_checkpoint(tmp_path / "first.ckpt")
    with pytest.warns(UserWarning, match=r"built with total_steps=8, the state with 4"):
        trainer(pl, tmp_path, DropBlockCallback()).fit(network(pl), ckpt_path=tmp_path / "first.ckpt")


# --- states that are restored in a training, and after it ------------------------------------------------------------


def at_epoch(finder, number, find):
    """A finder of Lightning that works at the start of one epoch, as its documentation shows."""

    class AtEpoch(finder):
        def on_fit_start(self, trainer, pl_module):
            pass

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == number:
                getattr(self, find)(trainer, pl_module)

    return AtEpoch


@pytest.mark.filterwarnings("ignore:The `batch_idx` argument", "ignore:.*Failed to compute suggestion")
def test_a_learning_rate_finder_in_a_training_leaves_the_schedule_and_the_checkpoints_right(pl, tmp_path):
    def fit(saved, ckpt_path=None):
        pl.seed_everything(1, verbose=False)
        net = network(pl, loader=DataLoader(data(), batch_size=2, shuffle=True))  # since the finder asks for it again
        net.lr = 0.05
        finder = at_epoch(pl.callbacks.LearningRateFinder, 1, "lr_find")(num_training_steps=3, update_attr=False)
        saving = pl.callbacks.ModelCheckpoint(tmp_path / saved, save_top_k=-1)
        options = {"max_epochs": 3, "enable_checkpointing": True, "limit_val_batches": 0}
        callback = DropBlockCallback()
        trainer(pl, tmp_path, callback, finder, saving, **options).fit(net, ckpt_path=ckpt_path)
        return bits(net), callback.schedule.state_dict()

    whole = fit("whole")
    assert whole[1]["steps"] == whole[1]["total_steps"] == 12
    second = sorted((tmp_path / "whole").iterdir())[1]
    assert torch.load(second, weights_only=True)["callbacks"]["DropBlockCallback"]["schedule"]["steps"] == 8
    assert fit("resumed", second) == whole


class Rollback:
    """Restores a checkpoint before a batch of a later epoch."""

    def __init__(self, path, batch):
        self.path, self.batch, self.seen = path, batch, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, self.batch) and self.path.exists():
            trainer._checkpoint_connector.restore(self.path, weights_only=True)
            self.path.unlink()
            self.seen.append(next(c for c in trainer.callbacks if hasattr(c, "schedule")).state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 4 and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.filterwarnings("ignore:the training ended after", "ignore:the schedule has been stepped 9 times")
def test_a_rollback_is_applied_at_once(pl, tmp_path, batch):
    rollback = type("Rollback", (Rollback, pl.Callback), {})(tmp_path / "saved.ckpt", batch)
    net, callback = network(pl), DropBlockCallback()
    fit = trainer(pl, tmp_path, callback, rollback, limit_val_batches=0)
    fit.fit(net)
    (state,) = rollback.seen
    assert state["schedule"]["steps"] == 4
    assert strengths(net)[4 + batch] == 0.5
    assert callback.schedule.steps == fit.global_step > 4


@pytest.mark.parametrize("evaluates", ["test", "validate"])
def test_a_checkpoint_that_is_evaluated_after_a_training_does_not_reach_its_own(pl, tmp_path, evaluates):
    saving = pl.callbacks.ModelCheckpoint(tmp_path / "saved", save_top_k=-1)
    fit = trainer(pl, tmp_path, DropBlockCallback(), saving, enable_checkpointing=True)
    net = network(pl)
    fit.fit(net)
    older = min((tmp_path / "saved").iterdir())
    getattr(fit, evaluates)(net, net.val_dataloader(), ckpt_path=older, verbose=False)
    fit.save_checkpoint(tmp_path / "after.ckpt")
    state = torch.load(tmp_path / "after.ckpt", weights_only=True)["callbacks"]["DropBlockCallback"]
    assert state["schedule"]["steps"] == 8


@pytest.mark.filterwarnings("ignore:.*Failed to compute suggestion")
def test_a_finder_before_a_second_training_does_not_bring_back_the_first(pl, tmp_path):
    callback = DropBlockCallback()
    trainer(pl, tmp_path, callback).fit(network(pl))
    net = network(pl)
    net.lr = 0.05
    finder = pl.callbacks.LearningRateFinder(num_training_steps=3, update_attr=False)
    trainer(pl, tmp_path, callback, finder).fit(net)
    assert strengths(net) == [i / 8 for i in range(8)]


# --- the log ---------------------------------------------------------------------------------------------------------


def test_the_loggers_get_what_was_dropped_as_often_as_the_trainer_logs(pl, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    lines = []
    logger.log_metrics = lambda metrics, step=None: lines.append((step, metrics))
    net = network(pl)
    trainer(pl, tmp_path, DropBlockCallback(), logger=logger, log_every_n_steps=2).fit(net)
    lines = [(step, metrics) for step, metrics in lines if "dropblock/keep_prob" in metrics]
    assert [step for step, _ in lines] == [1, 3, 5, 7]
    for step, metrics in lines:
        names = {f"dropblock/{kind}{name}" for kind in ("keep_prob", "dropped") for name in ("", "/net.1", "/net.3")}
        assert metrics.keys() == names
        assert metrics["dropblock/keep_prob"] == pytest.approx(1 - 0.3 * step / 8)
        assert metrics["dropblock/dropped"] == pytest.approx(0.3 * step / 8, abs=0.1)


# --- how many steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "steps"), [({}, 7), ({"max_steps": 5}, 5)])
def test_batches_that_are_accumulated_by_a_scheduler_are_counted(pl, tmp_path, options, steps):
    accumulation = pl.callbacks.GradientAccumulationScheduler({1: 2, 2: 4})
    callback = DropBlockCallback()
    trainer(pl, tmp_path, callback, accumulation, max_epochs=3, limit_val_batches=0, **options).fit(network(pl))
    assert (callback.schedule.steps, callback.schedule.strength) == (steps, 1.0)


def test_a_training_that_takes_fewer_steps_than_expected_says_so(pl, tmp_path):
    class More(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.accumulate_grad_batches = 1 + trainer.current_epoch

    with pytest.warns(UserWarning, match="ended after 6 steps, but the trainer expected total_steps=8: .* 0.75 and"):
        trainer(pl, tmp_path, DropBlockCallback(), More()).fit(network(pl))
    trainer(pl, tmp_path, DropBlockCallback(total_steps=8), More()).fit(network(pl))


def test_repr(pl, tmp_path):
    callback = DropBlockCallback(curve="cosine")
    assert repr(callback) == "DropBlockCallback(curve='cosine', total_steps=None)"
    trainer(pl, tmp_path, callback, fast_dev_run=True).fit(network(pl))
    schedule = "KeepProbSchedule(Net, total_steps=1, curve='cosine', steps=1, layers=2)"
    assert repr(callback) == f"DropBlockCallback(curve='cosine', total_steps=None, schedule={schedule})"


def test_options_are_keywords():
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given; its options are keywords"):
        DropBlockCallback("cosine")


# --- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("happens", ["save", "failure"])
def test_what_is_saved_or_fails_in_a_batch_has_the_state_that_ranks_share(pl, tmp_path, monkeypatch, happens):
    states = []
    for rank in range(2):
        shards = {"num_replicas": 2, "rank": rank}
        monkeypatch.setattr(pl.Trainer, "distributed_sampler_kwargs", property(lambda _, shards=shards: shards))
        pl.seed_everything(1, verbose=False)
        net, callback = network(pl), DropBlockCallback()

        def training_step(batch, batch_idx, callback=callback):
            states.append(callback.state_dict()["random"]["torch"][0])
            raise RuntimeError("here")

        net.training_step = training_step
        with pytest.raises(RuntimeError, match="here"):
            trainer(pl, tmp_path, callback).fit(net)
        if happens == "failure":
            states[-1] = torch.get_rng_state()
    assert torch.equal(*states)


RANKS = """
import importlib, json, sys, warnings
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset
from torch_dropblock import DropBlock2d
from torch_dropblock.integrations.lightning import DropBlockCallback

torch.set_num_threads(1)
warnings.simplefilter("ignore")
pl = importlib.import_module(sys.argv[1])

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        layer = DropBlock2d(3, keep_prob=0.7)
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3), layer, nn.Flatten(), nn.Linear(6 * 14 * 14, 4))
        layer.register_forward_hook(lambda module, args, output: self.masks.append((output[0, 0] == 0).int().tolist()))
        self.masks, self.keep_probs, self.samples = [], [], []

    def training_step(self, batch, batch_idx):
        self.keep_probs.append(self.net[1].keep_prob)
        self.samples += batch[1].tolist()
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)

def fit(curve, ckpt_path=None, save=None, sampler=None):
    pl.seed_everything(1, verbose=False)
    net = Net()
    dataset = TensorDataset(torch.randn(8, 3, 16, 16), torch.arange(8))
    loader = DataLoader(dataset, batch_size=2, **({"sampler": sampler} if sampler else {"shuffle": True}))
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=bool(save),
        callbacks=[DropBlockCallback(curve=curve), *([save] if save else [])],
    )
    trainer.fit(net, loader, ckpt_path=ckpt_path)
    return net, {
        "masks": net.masks, "keep_probs": net.keep_probs, "samples": net.samples,
        "weights": [value.tolist() for value in net.state_dict().values()], "random": torch.rand(()).item(),
    }

saving = pl.callbacks.ModelCheckpoint("saved", save_top_k=-1, filename="{epoch}")
net, whole = fit("linear", save=saving)
runs = {
    "whole": whole,
    "resumed": fit("linear", ckpt_path="saved/epoch=0.ckpt")[1],
    "constant": fit("constant")[1],
    "sampler": fit("constant", sampler=SubsetRandomSampler(range(8)))[1],
}
with open(f"rank{net.global_rank}.json", "w") as file:
    json.dump(runs, file)
"""


@pytest.fixture(scope="module", params=FRAMEWORKS[:1])  # they differ in names alone
def ranks(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    (path / "train.py").write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "train.py", request.param], cwd=path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((path / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.sweep
def test_ranks_that_are_seeded_alike_draw_other_masks_from_the_first_batch_on(ranks):
    first, second = (rank["constant"]["masks"] for rank in ranks)
    assert len(first) == 4
    masks = [*map(str, first), *map(str, second)]
    assert len(set(masks)) == 8


@pytest.mark.sweep
def test_ranks_have_the_same_strength_and_the_same_weights(ranks):
    first, second = (rank["whole"] for rank in ranks)
    assert first["keep_probs"] == second["keep_probs"] == pytest.approx([1, 0.925, 0.85, 0.775])
    assert first["weights"] == second["weights"]
    assert sorted(first["samples"][:4] + second["samples"][:4]) == list(range(8))


@pytest.mark.sweep
def test_ranks_stay_alike_outside_of_training_batches(ranks):
    """A sampler without a seed of its own deals out the data only while they are."""
    first, second = (rank["sampler"] for rank in ranks)
    assert first["random"] == second["random"]
    assert sorted(first["samples"][:4] + second["samples"][:4]) == list(range(8))
    assert sorted(first["samples"][4:] + second["samples"][4:]) == list(range(8))


@pytest.mark.sweep
def test_each_rank_goes_on_from_a_checkpoint_with_its_own_masks(ranks):
    for rank in ranks:
        whole, resumed = rank["whole"], rank["resumed"]
        assert resumed["masks"] == whole["masks"][2:]
        for name in ("keep_probs", "samples"):
            assert resumed[name] == whole[name][-len(resumed[name]) :]
        assert resumed["weights"] == whole["weights"]
        assert resumed["random"] == whole["random"]
