"""The callback for the Hugging Face Trainer: real trainings of a tiny ResNet with random weights."""

import pytest
import torch
from torch import nn

from torch_dropblock import insert_dropblock

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

from torch_dropblock.integrations.transformers import DropBlockCallback  # noqa: E402

STEPS = 20


def network(layers=True):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    if layers:
        insert_dropblock(model, "*.stages.*.layer.0.normalization", block_size=3, keep_prob=0.7)
    return model


def images():
    generator = torch.Generator().manual_seed(1)
    return [
        {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": i % 3}
        for i in range(24)
    ]  # fmt: skip


class Watcher(transformers.TrainerCallback):
    """Notes strengths, and can stop a training after some step, as an interrupt does after a checkpoint."""

    def __init__(self, callback, stop_at):
        self.callback, self.stop_at, self.strengths, self.reported = callback, stop_at, {}, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.strengths[state.global_step] = self.callback.schedule.strength

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.stop_at:
            control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs, **kwargs):
        self.reported.append(dict(logs))


def train(path, *, stop_at=None, resume=None, callback=None, **options):
    callback = DropBlockCallback() if callback is None else callback
    model = network()
    watcher = Watcher(callback, stop_at)
    args = transformers.TrainingArguments(
        **{"output_dir": str(path), "max_steps": STEPS, "per_device_train_batch_size": 4, "logging_steps": 2}
        | {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 5}
        | options
    )
    trainer = transformers.Trainer(model, args, train_dataset=images(), eval_dataset=images()[:4])
    trainer.callback_handler.callbacks = [callback, *trainer.callback_handler.callbacks, watcher]
    trainer.train(resume_from_checkpoint=resume)
    return trainer, watcher


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *args, **kwargs: None)
        return train(tmp_path_factory.mktemp("whole"))


def test_strength_follows_the_steps_of_the_optimizer(whole):
    _, watcher = whole
    assert watcher.strengths == {i: pytest.approx(i / STEPS) for i in range(STEPS)}
    assert watcher.callback.schedule.steps == STEPS
    assert watcher.callback.schedule.strength == 1.0


def test_the_log_has_what_was_dropped(whole):
    trainer, watcher = whole
    training = [line for line in trainer.state.log_history if "loss" in line]
    assert len(training) == STEPS / 2
    layers = [f"resnet.encoder.stages.{i}.layers.0.layer.0.normalization" for i in range(2)]
    names = {
        f"dropblock/{kind}{name}" for kind in ("keep_prob", "dropped") for name in ("", *(f"/{n}" for n in layers))
    }
    for line in training:
        assert {name for name in line if name.startswith("dropblock/")} == names
        strength = (line["step"] - 1) / STEPS  # that of the step itself
        assert line["dropblock/keep_prob"] == pytest.approx(1 - 0.3 * strength)
        assert line["dropblock/dropped"] == pytest.approx(0.3 * strength, abs=0.12)
    reported = [line for line in watcher.reported if "loss" in line]
    assert [line["dropblock/dropped"] for line in reported] == [line["dropblock/dropped"] for line in training]
    assert not any("dropblock/dropped" in line for line in watcher.reported if "loss" not in line)


def test_interrupted_and_resumed_it_has_the_same_weights(whole, tmp_path):
    train(tmp_path, stop_at=7)
    resumed, watcher = train(tmp_path, resume=str(tmp_path / "checkpoint-7"))
    assert min(watcher.strengths) == 7
    assert watcher.strengths[7] == 7 / STEPS
    expected = whole[0].model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    plain = network(layers=False)
    plain.load_state_dict(expected)  # checkpoints are those of the plain network


def test_accumulated_batches_are_one_step(tmp_path):
    _, watcher = train(tmp_path, max_steps=4, gradient_accumulation_steps=3)
    assert watcher.strengths == {i: i / 4 for i in range(4)}


def test_evaluation_is_no_step(whole, tmp_path):
    _, watcher = train(tmp_path, eval_strategy="steps", eval_steps=3)
    assert watcher.strengths == whole[1].strengths


def test_total_steps_and_curve(tmp_path):
    callback = DropBlockCallback(curve="constant", total_steps=3, grow_blocks=True)
    with pytest.warns(UserWarning, match="more than its total_steps=3"):
        _, watcher = train(tmp_path, max_steps=4, callback=callback)
    assert watcher.strengths == dict.fromkeys(range(4), 1.0)
    assert callback.schedule.grow_blocks


def test_each_process_draws_its_own_masks():
    class Namespace:
        def __init__(self, **values):
            vars(self).update(values)

    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    insert_dropblock(model, "0")
    states = []
    for rank in (0, 1, 2, 2):
        torch.manual_seed(3)
        DropBlockCallback().on_train_begin(
            Namespace(process_index=rank), Namespace(max_steps=5, global_step=0), None, model=model
        )
        states.append(torch.get_rng_state())
    torch.manual_seed(3)
    assert torch.equal(states[0], torch.get_rng_state())  # one process draws what it did without the callback
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    assert torch.equal(states[2], states[3])


def test_bad_options_are_refused_at_once():
    with pytest.raises(ValueError, match="curve must be one of"):
        DropBlockCallback(curve="cos")
    with pytest.raises(TypeError, match="its options are keywords"):
        DropBlockCallback("cosine")


def test_a_model_without_layers(tmp_path):
    args = transformers.TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = transformers.Trainer(network(layers=False), args, train_dataset=images(), callbacks=[DropBlockCallback()])
    with pytest.raises(ValueError, match="has no DropBlock layer"):
        trainer.train()
