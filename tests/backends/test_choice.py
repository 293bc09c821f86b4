"""Which path a call takes: by the tensor, by `use_backend`, and what the report says of it."""

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.interrupts import interrupt_at_every_line
from torch_dropblock import DropBlock2d, backend_report, drop_block2d, use_backend
from torch_dropblock.backends import choice, native, triton
from torch_dropblock.core.blocks import Blocks
from torch_dropblock.layer import eager

CPU = torch.device("cpu")
built = pytest.mark.skipif(native.LIBRARY is None, reason="the native library was not built")


def seen(monkeypatch):
    """The paths that calls take, as they are chosen."""
    taken = []
    monkeypatch.setattr(eager, "serving", lambda *arguments: taken.append(choice.serving(*arguments)) or taken[-1])
    return taken


def test_a_choice_holds_inside_and_can_be_nested(monkeypatch):
    taken, x = seen(monkeypatch), torch.ones(2, 3, 8, 8)
    drop_block2d(x, 3)
    with use_backend("sparse"):
        drop_block2d(x, 3)
        with use_backend("reference"):
            drop_block2d(x, 3)
        with use_backend("auto"):
            drop_block2d(x, 3)
        with pytest.raises(RuntimeError, match="inside"), use_backend("reference"):
            raise RuntimeError("inside")
        drop_block2d(x, 3)
    drop_block2d(x, 3)
    first = "native" if native.LIBRARY else "sparse"
    assert taken == [first, "sparse", "reference", first, "sparse", first]


def test_a_choice_is_of_its_thread():
    names = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: names.append(backend_report(torch.ones(2, 3, 8, 8)).backend))
        thread.start()
        thread.join()
        copied = contextvars.copy_context().run(lambda: backend_report(torch.ones(2, 3, 8, 8)).backend)
    assert names[0] in ("native", "sparse")
    assert copied == "reference"


@pytest.mark.parametrize(("name", "error"), [("cuda", ValueError), (None, TypeError), (["sparse"], TypeError)])
def test_a_bad_name_is_named(name, error):
    with pytest.raises(error, match=r"^name must be one of 'auto', 'triton'.*got "), use_backend(name):
        pass


def test_every_path_draws_the_same_mask():
    x = torch.rand(4, 8, 20, 20).add(1)
    outputs = []
    for name in ("auto", "sparse", "reference", *(["native"] if native.LIBRARY else [])):
        torch.manual_seed(1)
        with use_backend(name):
            outputs.append(drop_block2d(x, 5))
    assert all(torch.equal(outputs[0], output) for output in outputs)


def test_sparse_leaves_the_native_library_alone(monkeypatch):
    monkeypatch.setattr(native, "drop", lambda *_: pytest.fail("the library was asked"))
    with use_backend("sparse"):
        drop_block2d(torch.ones(2, 3, 8, 8, requires_grad=True), 3).sum().backward()


@built
def test_a_gradient_that_the_asked_path_does_not_serve_goes_through_the_same_mask():
    x = torch.ones(2, 3, 8, 9, requires_grad=True)
    with use_backend("native"):
        y = drop_block2d(x, 3, keep_prob=0.7)
    y.backward(torch.ones(2, 3, 9, 8).transpose(2, 3))
    assert torch.equal(x.grad, y)


@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_reference_is_a_layer_as_the_others_are(inplace, share_channels, z_score):
    leaf = torch.rand(64, 64, 14, 14).add(1).requires_grad_()
    with use_backend("reference"):
        y = drop_block2d(leaf * 1, 5, keep_prob=0.8, inplace=inplace, share_channels=share_channels)
    y.sum().backward()  # outside: the gradient takes the path of the forward pass
    assert torch.equal(leaf.grad == 0, y == 0)
    planes = (y != 0)[:, :1] if share_channels else y != 0
    assert abs(z_score(planes.double().mean((-1, -2)), 0.8)) < 5
    scale = torch.tensor(y.numel() / (y != 0).sum().item())
    assert torch.equal(leaf.grad, (y != 0) * scale)


def test_a_choice_that_cannot_serve_says_why_before_anything_is_drawn(monkeypatch):
    x, state = torch.ones(2, 3, 8, 8), torch.get_rng_state()
    monkeypatch.setattr(triton, "_imported", lambda: (None, "Triton cannot be imported (for a test)"))
    with use_backend("triton"), pytest.raises(ValueError, match=r"^use_backend\('triton'\) .*\(for a test\)"):
        drop_block2d(x, 3)
    monkeypatch.setattr(native, "LIBRARY", None)
    monkeypatch.setattr(native, "NOT_LOADED", "it cannot be loaded (for a test)")
    with use_backend("native"), pytest.raises(ValueError, match=r"^use_backend\('native'\) .*loaded \(for a test\)"):
        drop_block2d(x, 3)
    with use_backend("native"), pytest.raises(ValueError, match=r"^use_backend\('native'\)"):
        backend_report(x)
    assert torch.equal(state, torch.get_rng_state())


def test_triton_is_not_imported_where_it_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(triton, "_imported", lambda: pytest.fail("Triton was asked for"))
    x = torch.ones(2, 3, 8, 8, requires_grad=True)
    DropBlock2d(3).double().to("cpu")(x).sum().backward()


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_a_fake_tensor_of_a_gpu_that_is_not_here():
    """As tools have it that plan the memory of a training on another machine."""
    assert not choice.solves_gamma(torch.device("cuda", 0)), "a tensor of numbers cannot be there"
    with FakeTensorMode():
        x = torch.empty(2, 3, 8, 8, device="cuda")
        try:
            x[:1]
        except RuntimeError:
            pytest.skip("this PyTorch asks the driver when it cuts a fake tensor")
        y = drop_block2d(x, 3)
    assert (y.shape, y.device) == (x.shape, x.device)


def test_report():
    x = torch.ones(2, 3, 8, 8)
    report = backend_report(x, 3)
    expected = "sparse" if native.LIBRARY is None else "native"
    assert report.backend == expected
    assert list(report.reasons) == ["triton", "native", "sparse", "reference"]
    text = str(report)
    assert text.startswith(f"{expected}, for float32 of shape (2, 3, 8, 8) on cpu")
    assert f"→ {expected}" in text
    assert report.reasons["triton"]
    assert backend_report(x.half(), 3).backend == expected
    assert backend_report(x.transpose(2, 3), 3).backend == "sparse"
    assert backend_report(x[0], 3).backend == expected
    assert backend_report(x[0], 3, dims=1).backend == expected
    with use_backend("reference"):
        report = backend_report(x, 3)
    assert report.backend == "reference"
    assert report.reasons["sparse"] == "use_backend('reference') asks for another"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dims": 4}, "dims must be 1, 2 or 3"),
        ({"dims": 3}, "input must be"),
        ({"block_size": 0}, "block_size must be"),
        ({"keep_prob": 2}, "keep_prob must be"),
    ],
)
def test_a_bad_argument_of_the_report_is_named(arguments, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        backend_report(torch.ones(3, 8, 8), **arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["sparse", "native", "reference"])
def test_compiled_code_keeps_the_path_it_was_compiled_with(name):
    torch._dynamo.reset()
    layer = DropBlock2d(5, keep_prob=0.8)
    function = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.ones(16, 16, 20, 20, requires_grad=True)
    with use_backend(name):
        torch.manual_seed(1)
        y = function(x)
    assert (y != 0).float().mean().item() == pytest.approx(0.8, abs=0.03)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    torch.manual_seed(1)
    assert torch.equal(function(x), y)
    torch.manual_seed(1)
    assert torch.equal(layer(x) != 0, y != 0)
    torch._dynamo.reset()


def test_what_serves_where():
    blocks, x = Blocks((2, 3), (8, 8), (3, 3)), torch.ones(2, 3, 8, 8)
    first = "native" if native.LIBRARY else "sparse"
    assert choice.asked_for(x, blocks) == "auto"
    assert choice.serving("auto", x, blocks) == choice.serving_compiled(CPU) == first
    assert choice.serving("auto", x.to("meta"), blocks) == choice.serving_compiled(torch.device("meta")) == "sparse"
    assert choice.serving("native", x.to("meta"), blocks) == "sparse"
    for name in ("sparse", "reference"):
        with use_backend(name):
            assert (
                choice.asked_for(x, blocks) == choice.serving(name, x, blocks) == choice.serving_compiled(CPU) == name
            )
    with native.left_out():
        assert choice.serving("auto", x, blocks) == choice.serving_compiled(CPU) == "sparse"
        with use_backend("native"):
            assert choice.serving_compiled(CPU) == "sparse"
    with use_backend("triton"), pytest.raises(ValueError, match=r"^use_backend\('triton'\)"):
        choice.serving_compiled(CPU)


def test_gamma_is_solved_where_triton_is_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for reason, solved in ((None, True), ("for a test", False)):
        monkeypatch.setattr(triton, "why_not_on", lambda device, reason=reason: reason)
        assert choice.solves_gamma(torch.device("cuda")) == solved
        assert choice.serving_compiled(torch.device("cuda")) == ("triton" if solved else "sparse")
        assert not choice.solves_gamma(CPU)
        assert not choice.solves_gamma(torch.device("meta"))


def test_a_library_that_was_built_is_used():
    """Else its own tests would be skipped, and nobody would know."""
    if not Path(native.__file__).with_name("_native.so").exists():
        pytest.skip("the native library was not built")
    assert native.LIBRARY is not None, native.NOT_LOADED


def path():
    return backend_report(torch.ones(1, 1, 8, 8), 3).backend


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_contexts_that_overlap_end_in_any_order(order):
    """As those of two generators do."""
    left = {(0, 1): ["reference", path()], (1, 0): ["sparse", path()]}[order]
    contexts = [use_backend(name) for name in ("sparse", "reference")]
    for context in contexts:
        context.__enter__()
    assert path() == "reference"
    for i, expected in zip(order, left, strict=True):
        contexts[i].__exit__(None, None, None)
        assert path() == expected


def test_a_context_may_end_in_another_thread():
    """As that of a generator that another thread frees."""
    context = use_backend("sparse")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(context.__enter__).result()
    context.__exit__(None, None, None)


def test_an_interrupt_leaves_the_choice_as_it_was():
    def choose():
        with use_backend("sparse"):
            pass

    with use_backend("reference"):
        assert interrupt_at_every_line(choose, path) > 10
