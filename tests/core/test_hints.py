"""A wrong call gets a hint, a signature stays readable, a warning points to the user's line."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.jit.frontend import NotSupportedError

import torch_dropblock
from torch_dropblock import (
    DropBlock,
    DropBlock1d,
    DropBlock2d,
    KeepProbSchedule,
    convert_dropblock,
    drop_block2d,
    dropblock_summary,
    insert_dropblock,
    insert_dropblock_resnet,
)
from torch_dropblock.core import hints

X = torch.ones(1, 1, 4, 4)
MODEL = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
ORDER = "the block size comes first here and keep_prob is a keyword: "
OF_INPUT = ORDER + "drop_block2d(input, 7, keep_prob=0.9)"


@pytest.mark.parametrize(
    ("call", "python", "hint"),
    [
        (lambda: DropBlock2d(p=0.1, block_size=7), "got an unexpected keyword argument 'p'", ORDER),
        (lambda: DropBlock1d(7, drop_prob=0.1), "got an unexpected keyword argument 'drop_prob'", ORDER),
        (lambda: DropBlock2d(), "missing 1 required positional argument: 'block_size'", ORDER),
        (lambda: DropBlock2d(0.1, 7), "takes 2 positional arguments but 3 were given", ORDER),
        (lambda: drop_block2d(X, 0.1, 7), "takes 2 positional arguments but 3 were given", OF_INPUT),
        (lambda: drop_block2d(X, 7, p=0.1), "got an unexpected keyword argument 'p'", OF_INPUT),
        (lambda: drop_block2d(X), "missing 1 required positional argument: 'block_size'", OF_INPUT),
        (lambda: DropBlock(7, keep_prob=0.9), "got an unexpected keyword argument 'keep_prob'", "DropBlock(7, p=0.9)"),
        (
            lambda: insert_dropblock_resnet(MODEL, 0.9, 7),
            "takes 1 positional argument but 3 were given",
            "all but the model are keywords: insert_dropblock_resnet(model, keep_prob=0.9, block_size=7)",
        ),
        (lambda: insert_dropblock_resnet(MODEL, drop_prob=0.1), "keyword argument 'drop_prob'", "the share dropped"),
        (
            lambda: insert_dropblock(MODEL, "1", 7),
            "takes 2 positional arguments but 3 were given",
            'all but the model and the place are keywords: insert_dropblock(model, "layer4.?", block_size=7, ',
        ),
        (
            lambda: KeepProbSchedule(MODEL, 100, "cosine"),
            "takes 3 positional arguments but 4 were given",
            'KeepProbSchedule(model, total_steps=1000, curve="cosine")',
        ),
        (lambda: KeepProbSchedule(MODEL, epochs=3), "unexpected keyword argument 'epochs'", "epochs * len(loader)"),
        (lambda: dropblock_summary(MODEL), "missing 1 required positional argument: 'input_size'", "(1, 3, 224, 224)"),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit_gets_pythons_words_and_a_hint(call, python, hint):
    with pytest.raises(TypeError) as caught:
        call()
    words, _, rest = str(caught.value).partition("; ")
    assert words.endswith(python)
    assert hint in rest


def test_the_class_that_was_called_is_named():
    class Own(DropBlock2d):
        pass

    for layer in (DropBlock1d, Own):
        with pytest.raises(TypeError, match=rf"^{layer.__qualname__}\.__init__\(\) got"):
            layer(7, p=0.1)


def test_an_error_from_inside_stays_as_it_is():
    @hints.hinted("a hint")
    def inner(x):
        return len(x)

    for bad in (3, None):
        with pytest.raises(TypeError) as caught:
            inner(bad)
        assert "a hint" not in str(caught.value)


@pytest.mark.parametrize("name", torch_dropblock.__all__)
def test_signatures_show_no_more_than_can_be_given(name):
    public = getattr(torch_dropblock, name)
    if callable(public):
        parameters = inspect.signature(public).parameters.values()
        assert not [p.name for p in parameters if p.kind is p.VAR_POSITIONAL or p.name.startswith("_")]


def test_help_shows_the_defaults(capsys):
    help(DropBlock2d)
    help(drop_block2d)
    out = capsys.readouterr().out
    assert "misplaced" not in out
    assert out.count("keep_prob: 'float' = 0.9") == 2  # of the class and of its __init__
    assert "drop_block2d(input: 'Tensor', block_size: 'BlockSize', *, keep_prob:" in " ".join(out.split())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_torchscript_names_the_function_itself():
    with pytest.raises(NotSupportedError, match=r"Compiled functions can't take .*\n  File \".*functional\.py\""):
        torch.jit.script(drop_block2d)


# --- what a function returns is not the model ------------------------------------------------------------------------

INSERTED = {
    "insert_dropblock": lambda: insert_dropblock(nn.Sequential(nn.Conv2d(1, 1, 1)), "0"),
    "insert_dropblock_resnet": lambda: insert_dropblock_resnet(torchvision.models.resnet18(), groups=(4,)),
    "convert_dropblock": lambda: convert_dropblock(nn.Sequential(torchvision.ops.DropBlock2d(0.1, 7))),
}


@pytest.mark.parametrize("name", INSERTED)
def test_layers_taken_for_the_model(name):
    model = INSERTED[name]()
    with pytest.raises(TypeError, match="^'dict' object is not callable; the function changed the model in place"):
        model(X)
    with pytest.raises(AttributeError, match="^'dict' object has no attribute 'cuda'; the function changed the model"):
        model.cuda()
    assert not hasattr(model, "parameters")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda layers: pickle.loads(pickle.dumps(layers))])
def test_layers_are_a_dict(copied):
    layers = INSERTED["insert_dropblock"]()
    other = copied(layers)
    assert isinstance(other, dict)
    assert repr(other) == repr(layers) == repr(dict(layers))
    assert (layers | {}).keys() == {"0"}


# --- warnings --------------------------------------------------------------------------------------------------------


def line_of(call):
    """The file and the source line that the warning of a call points to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    (warning,) = caught
    with open(warning.filename) as file:
        return warning.filename, file.readlines()[warning.lineno - 1].strip()


def loaded():
    schedule = KeepProbSchedule(nn.Sequential(DropBlock2d(3)), 10)
    schedule.load_state_dict(schedule.state_dict() | {"total_steps": 20})  # here: a state


def off():
    model = nn.Sequential(nn.BatchNorm2d(1))
    insert_dropblock(model, "0")
    model[0].eval()
    KeepProbSchedule(model, 10).step()  # here: a step


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: insert_dropblock(MODEL, "nothing"), '(lambda: insert_dropblock(MODEL, "nothing"),'),
        (lambda: insert_dropblock(MODEL, []), "(lambda: insert_dropblock(MODEL, []),"),
        (lambda: insert_dropblock(MODEL, lambda *_: False), "(lambda: insert_dropblock(MODEL, lambda *_: False),"),
        (lambda: convert_dropblock(MODEL), "(lambda: convert_dropblock(MODEL),"),
        (loaded, "# here: a state"),
        (off, "# here: a step"),
    ],
)
def test_a_warning_points_to_the_users_line(call, line):
    filename, found = line_of(call)
    assert filename == __file__
    assert line in found
