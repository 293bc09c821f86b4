"""One run: what it draws, its learning rate, and what it counts. In this process; `test_compare_study` has others."""

import contextlib
import math
import types

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from helpers import studies
from torch_dropblock.compare import rows, training
from torch_dropblock.compare.batches import Batches
from torch_dropblock.compare.study import _quiet
from torch_dropblock.compare.training import PADDING, Run, Shard, hashed
from torch_dropblock.networks import sites


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with studies.one_thread():
        yield


class Stopped(Exception):  # noqa: N818
    pass


class Trace(Callback):
    """What a training does in each step, and an interrupt before one of them."""

    def __init__(self, stop=None):
        self.learning_rates, self.keep_probs, self.batches, self.stop = [], [], [], stop

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if len(self.batches) == self.stop:
            raise Stopped
        self.learning_rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.keep_probs.append([site.layer.keep_prob for site in sites.find(pl_module.network).values()])
        self.batches.append(batch)


def fit(path, name="baseline", seed=0, workers=0, checkpoint=None, stop=None, **changes):
    """A run, as a study makes it: what it did, and the run."""
    work = studies.study(path, [name], workers=workers, **changes)
    run = Run(work.settings, work.rows[-1], seed, work.source, workers)
    trace = Trace(stop)
    with _quiet():
        trainer = work._trainer(path, trace)
        with contextlib.suppress(Stopped):
            trainer.fit(run, ckpt_path=checkpoint, weights_only=True)
    return trace, run


# --- the recipe ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cosine(tmp_path_factory):
    return fit(
        tmp_path_factory.mktemp("cosine"), "dropblock", epochs=5, learning_rate=1.0, batch_size=20, limit_train=160
    )


def test_the_learning_rate_rises_and_falls_as_half_a_cosine(cosine):
    trace, _ = cosine
    highest, steps, warmup = 20 / 256, 40, 1
    expected = [
        highest * (t + 1) / (warmup + 1)
        if t < warmup
        else highest * (1 + math.cos(math.pi * (t - warmup) / (steps - warmup))) / 2
        for t in range(steps)
    ]
    assert trace.learning_rates == pytest.approx(expected)


def test_the_learning_rate_falls_in_the_papers_steps(tmp_path):
    trace, _ = fit(tmp_path, epochs=2, batch_size=10, limit_train=270, decay="steps", validate_every=2)
    highest = 0.1 * 10 / 256
    expected = [highest * 0.1 ** sum(t >= at / 5 for at in (125, 200, 250)) for t in range(54)]
    expected[0] = highest / 2  # five epochs of 270 are one step of 54
    assert trace.learning_rates == pytest.approx(expected)


def test_keep_prob_follows_the_schedule_from_the_first_step_to_the_last(cosine):
    trace, _ = cosine
    of_group_4 = [keep_probs[-1] for keep_probs in trace.keep_probs]
    assert of_group_4 == pytest.approx([1 - 0.1 * t / 40 for t in range(40)])
    assert [keep_probs[0] for keep_probs in trace.keep_probs] == pytest.approx([1 - 0.025 * t / 40 for t in range(40)])


def test_curves_have_a_value_for_each_epoch(cosine):
    _, run = cosine
    assert set(run.curves) == {"loss", "top1", "train_loss", "train_top1"}
    assert all([epoch for epoch, _ in curve] == [1, 2, 3, 4, 5] for curve in run.curves.values())
    assert len(run.step_seconds) == 5
    assert 0 < sum(run.step_seconds) * 8 < run.seconds


def test_it_learns(cosine):
    _, run = cosine
    assert run.curves["loss"][-1][1] < run.curves["loss"][0][1]
    assert run.curves["top1"][-1][1] > 0.3


def test_validation_may_be_rarer_than_epochs(tmp_path):
    _, run = fit(tmp_path, epochs=4, validate_every=2, limit_train=50)
    assert [epoch for epoch, _ in run.curves["top1"]] == [2, 4]
    assert [epoch for epoch, _ in run.curves["train_top1"]] == [1, 2, 3, 4]


def test_blocks_are_as_large_as_the_last_map_unless_they_are_told(tmp_path):
    for name, size in (("dropblock", 2), ("dropblock:block_size=1", 1)):
        work = studies.study(tmp_path, [name])
        run = Run(work.settings, work.rows[-1], 0, work.source, 0)
        assert {site.layer.block_size for site in sites.find(run.network).values()} == {size}


def test_label_smoothing_is_in_the_loss_of_training_alone(tmp_path):
    work = studies.study(tmp_path, ["label-smoothing"])
    run = Run(work.settings, work.rows[-1], 0, work.source, 0)
    assert run.loss.label_smoothing == 0.1
    images, labels = work.source.val.images[:30], work.source.val.labels[:30]
    run.eval()
    run.validation_step((images, labels), 0)
    assert run.val_loss.compute() == pytest.approx(nn.functional.cross_entropy(run(images), labels).item())


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(tmp_path, precision):
    _, run = fit(tmp_path, "dropblock", epochs=1, limit_train=50, precision=precision)
    assert run.network.fc.weight.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    assert math.isfinite(run.curves["loss"][0][1])


def test_a_training_that_diverges_has_a_loss_that_is_no_number(tmp_path):
    _, run = fit(tmp_path, epochs=3, learning_rate=1e20)
    assert math.isnan(run.curves["train_loss"][-1][1])
    assert math.isnan(run.curves["loss"][-1][1])


class Waits(TorchDispatchMode):
    """The operations for which the host would wait for a GPU: their numbers, or their shapes, depend on values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        values = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if by_mask or func in values or func.overloadpacket is torch.ops.aten.masked_select:
            self.found.append(str(func))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["baseline", "spatial-dropout", "label-smoothing", "cutout"])
def test_a_step_waits_for_nothing(tmp_path, name):
    work = studies.study(tmp_path, [name])
    run = Run(work.settings, work.rows[-1], 0, work.source, 0)
    augmentation = work.source.augmentation_of(run.row)
    batches = Batches(work.source.train, torch.arange(40), 20, torch.device("cpu"), augmentation)
    with Waits() as waits:
        batch = next(iter(batches))
        run.training_step(batch, 0).backward()
    assert waits.found == []
    with Waits() as waits:  # where padding is left out: it finds what there is to find
        run.validation_step(batch, 0)
    assert waits.found


# --- chance ----------------------------------------------------------------------------------------------------------


def bits(run):
    return [value.tolist() for value in run.network.state_dict().values()]


@pytest.mark.parametrize("name", ["dropblock+cutout", "dropblock+autoaugment"])
def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(tmp_path, name):
    trace, whole = fit(tmp_path / "whole", name)
    fit(tmp_path / "first", name, stop=4)
    torch.rand(7)
    again, resumed = fit(tmp_path / "second", name, checkpoint=tmp_path / "first" / "last.ckpt")
    assert bits(resumed) == bits(whole)
    assert resumed.curves == whole.curves
    assert len(resumed.step_seconds) == 2
    assert again.learning_rates == trace.learning_rates[3:]
    assert again.keep_probs == trace.keep_probs[3:]
    for (images, labels), (expected, classes) in zip(again.batches, trace.batches[3:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, classes)


def test_a_seed_has_its_own_weights_order_and_masks(tmp_path):
    runs = [fit(tmp_path / str(i), "dropblock", seed=seed, epochs=1) for i, seed in enumerate((0, 0, 1))]
    assert bits(runs[0][1]) == bits(runs[1][1])
    assert bits(runs[0][1]) != bits(runs[2][1])
    labels = [torch.cat([labels for _, labels in trace.batches]).tolist() for trace, _ in runs]
    assert labels[0] == labels[1] != labels[2]


def test_rows_share_the_first_weights_and_the_order_of_the_images(tmp_path):
    one, other = (fit(tmp_path / name, name, epochs=1)[0] for name in ("baseline", "dropout"))
    for (_, labels), (_, others) in zip(one.batches, other.batches, strict=True):
        assert torch.equal(labels, others)


def test_epochs_have_another_order_and_see_all_images(tmp_path):
    trace, _ = fit(tmp_path, limit_train=100)
    first, second = (torch.cat([labels for _, labels in trace.batches[i : i + 2]]) for i in (0, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_ranks_see_other_images_and_draw_other_numbers(tmp_path):
    work = studies.study(tmp_path)
    seen, drawn = [], []
    for rank in range(2):
        run = Run(work.settings, work.rows[-1], 0, work.source, 0)
        strategy = types.SimpleNamespace(root_device=torch.device("cpu"))
        run._trainer = types.SimpleNamespace(current_epoch=3, world_size=2, global_rank=rank, strategy=strategy)
        run._fabric = None
        loader = Run.train_dataloader(run)
        assert loader.size == 25
        seen.append(loader.order.tolist())
        drawn.append(torch.rand(4))
    assert not set(seen[0]) & set(seen[1])
    assert len({*seen[0], *seen[1]}) == 150
    assert not torch.equal(*drawn)


def test_hashed_numbers_are_those_of_all_arguments():
    numbers = {hashed(seed, epoch, rank) for seed in range(5) for epoch in range(50) for rank in range(4)}
    assert len(numbers) == 1000
    assert all(0 <= number < 2**32 for number in numbers)
    assert hashed(1, 23) != hashed(12, 3)


# --- what is counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shards_are_of_one_length_and_hold_each_image_once(world):
    images = TensorDataset(torch.arange(7), torch.arange(7))
    shards = [Shard(images, rank, world) for rank in range(world)]
    assert {len(shard) for shard in shards} == {math.ceil(7 / world)}
    held = [int(label) for shard in shards for _, label in (shard[i] for i in range(len(shard)))]
    assert sorted(label for label in held if label != PADDING) == list(range(7))
    assert held.count(PADDING) == world * math.ceil(7 / world) - 7


@pytest.mark.parametrize("classes", [10, training.CLASSES_FOR_TOP5])
def test_padding_is_not_counted(tmp_path, classes):
    work = studies.study(tmp_path)
    source = work.source.__class__(**vars(work.source) | {"classes": classes})
    run = Run(work.settings, rows.Row("baseline"), 0, source, 0).eval()
    images, labels = source.val.images[:31], source.val.labels[:31]
    padded = torch.where(torch.arange(31) < 24, labels, PADDING)
    run.validation_step((images, padded), 0)
    run.validation_step((images, torch.full_like(labels, PADDING)), 1)
    values = run.val_metrics.compute()
    logits = run(images[:24])
    assert set(values) == ({"top1", "top5"} if classes >= training.CLASSES_FOR_TOP5 else {"top1"})
    for name, value in values.items():
        best = logits.topk(5 if name == "top5" else 1).indices
        assert value == pytest.approx((best == labels[:24, None]).any(1).double().mean().item())
    assert run.val_loss.compute() == pytest.approx(nn.functional.cross_entropy(logits, labels[:24]).item(), rel=1e-4)
