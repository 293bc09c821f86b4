"""Derivatives of every kind, function transforms, checkpointing: all see the one mask of the forward pass."""

import pytest
import torch
from torch.autograd import forward_ad, functional
from torch.func import functionalize, grad, jacfwd, jacrev, jvp, vmap
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

from torch_dropblock import drop_block1d, drop_block2d, drop_block3d, use_backend

# torch's own forward-mode rules still use its deprecated torch.jit.script when they are first loaded
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")


def drop(x, **options):
    return drop_block2d(x, 3, keep_prob=0.7, **options)


def same_mask(drop_block):
    """A layer that draws the same seeds at every call, so that it is a function."""

    def function(x, **options):
        return drop_block(x, keep_prob=0.7, key=5, **options)

    return function


@pytest.mark.parametrize(
    ("drop_block", "shape", "block"),
    [(drop_block1d, (2, 3, 9), 3), (drop_block2d, (2, 3, 5, 4), (3, 2)), (drop_block3d, (2, 2, 3, 3, 4), 2)],
)
def test_first_and_second_derivatives_in_both_modes(drop_block, shape, block):
    layer = same_mask(lambda x, **options: drop_block(x, block, **options))

    def function(x):
        return layer(x * x) * x

    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x,), check_fwd_over_rev=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_a_dropped_unit_held_is_gone_and_so_is_its_gradient(value):
    x = torch.full((8, 16, 12, 12), value, requires_grad=True)
    y = drop(x)
    dropped = y == 0
    assert 0.2 < dropped.float().mean() < 0.4
    assert torch.equal(torch.isfinite(y), dropped), "what was kept is as it was"
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, value))
    assert torch.equal(gradient == 0, dropped)


def test_gradient_is_the_mask_times_the_scale():
    x = torch.randn(8, 16, 12, 12, requires_grad=True)
    y = drop(x)
    y.sum().backward()
    scale = y.numel() / (y != 0).sum().item()
    torch.testing.assert_close(x.grad, (y != 0) * torch.tensor(scale), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_have_the_dtype_and_layout_of_what_they_belong_to(dtype):
    x = torch.randn(4, 8, 10, 10, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    drop(x).square().sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_inplace_writes_into_its_input_and_differentiates_alike():
    x = torch.randn(4, 8, 12, 12, requires_grad=True)
    out = same_mask(lambda x, **o: drop_block2d(x, 3, **o))(x)
    y = x * 1
    inplace = same_mask(lambda x, **o: drop_block2d(x, 3, inplace=True, **o))(y)
    assert inplace is y
    assert torch.equal(inplace, out)
    assert torch.equal(*(torch.autograd.grad(z.square().sum(), x)[0] for z in (out, inplace)))


def test_inplace_on_a_view_of_a_larger_tensor():
    x = torch.ones(2, 8, 12, 12, requires_grad=True)
    y = x * 1
    drop(y[:, ::2], inplace=True)
    y.sum().backward()
    assert torch.equal(y[:, 1::2], torch.ones(2, 4, 12, 12)), "the rest of the memory is left alone"
    assert torch.equal(x.grad, y.detach())


def test_saving_what_was_overwritten_is_noticed():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    y = x.exp()  # whose backward needs its result
    drop(y, inplace=True).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("inplace", [False, True])
def test_forward_mode(inplace):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(4, 8, 12, 12), torch.full((4, 8, 12, 12), 2.0))
        value, tangent = forward_ad.unpack_dual(drop(dual * 1, inplace=inplace))
    assert (value == 0).any()
    assert torch.equal(tangent, 2 * value)


def test_jacobians_are_diagonal():
    x = torch.ones(1, 2, 4, 4)
    for jacobian in (jacfwd(drop, randomness="same")(x), jacrev(drop)(x)):
        matrix = jacobian.reshape(32, 32)
        assert torch.equal(matrix, matrix.diag().diag())
        kept = matrix.diag() != 0
        assert torch.equal(matrix.diag(), kept * torch.tensor(32 / kept.sum().item()))


def test_jvp_of_func():
    value, tangent = jvp(drop, (torch.ones(4, 8, 12, 12),), (torch.ones(4, 8, 12, 12),))
    assert (value == 0).any()
    assert torch.equal(value, tangent)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_activation_checkpointing_draws_the_same_mask_again(use_reentrant, inplace):
    x = torch.rand(4, 8, 12, 12).add(1).requires_grad_()

    def block(x):
        return drop(drop(x * 1, inplace=inplace).square())

    y = checkpoint(block, x, use_reentrant=use_reentrant)
    dropped = y == 0
    y.sum().backward()
    assert torch.equal(x.grad == 0, dropped)


def saved_bytes(function, x):
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x)
    return total


def test_only_the_key_is_saved_for_the_backward_pass():
    """A number of 64 bits, and what is known of every mask of this kind."""
    x = torch.randn(16, 64, 28, 28, requires_grad=True)
    for function in (drop, lambda x: drop(x * 1, inplace=True)):
        assert saved_bytes(function, x) == 0
        node = function(x).grad_fn
        assert not [value for value in vars(node).values() if isinstance(value, torch.Tensor)]
        assert -(2**63) <= node.key < 2**63


# --- vmap --------------------------------------------------------------------------------------------------------


def test_vmap_asks_for_a_kind_of_randomness():
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(drop)(torch.ones(3, 4, 8, 12, 12))


@pytest.mark.parametrize("in_dim", [0, 1, 2, -1])
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap(in_dim, randomness, z_score):
    x = torch.ones(6, 32, 32, 12, 12).movedim(0, in_dim)
    y = vmap(drop, in_dims=in_dim, randomness=randomness)(x)
    assert y.shape == (6, 32, 32, 12, 12)
    alike = [torch.equal(y[0], y[i]) for i in range(1, 6)]
    assert alike == [randomness == "same"] * 5
    independent = y[:1] if randomness == "same" else y
    assert abs(z_score((independent != 0).double().mean((-1, -2)), 0.7)) < 5
    assert y.mean().item() == pytest.approx(1.0, abs=1e-5), "the count is over all of them together"
    assert torch.equal(y, (y != 0) * torch.tensor(y.numel() / (y != 0).sum().item()))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_without_a_batch_inside(randomness):
    y = vmap(lambda x: drop(x, share_channels=True), randomness=randomness)(torch.ones(6, 32, 12, 12))
    assert torch.equal(y, y[:, :1].expand_as(y)), "channels share the mask"
    assert torch.equal(y[0], y[1]) == (randomness == "same")


@pytest.mark.parametrize("inner", ["same", "different"])
@pytest.mark.parametrize("outer", ["same", "different"])
def test_nested_vmap(outer, inner):
    y = vmap(vmap(drop, randomness=inner), randomness=outer)(torch.ones(3, 4, 8, 16, 12, 12))
    assert torch.equal(y[0], y[1]) == (outer == "same")
    assert torch.equal(y[:, 0], y[:, 1]) == (inner == "same")


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_over_something_else(randomness):
    x = torch.ones(4, 8, 12, 12)
    y = vmap(lambda factor: drop(x) * factor, randomness=randomness)(torch.tensor([1.0, 1.0]))
    assert torch.equal(y[0], y[1]) == (randomness == "same")


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_per_sample_gradients_see_the_mask_of_the_forward_pass(randomness):
    def loss(x):
        y = drop(x)
        return y.sum(), y

    gradients, y = vmap(grad(loss, has_aux=True), randomness=randomness)(torch.ones(5, 4, 8, 12, 12))
    assert (y == 0).any()
    assert torch.equal(gradients, y)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_inplace_under_vmap(randomness):
    x = torch.ones(5, 4, 8, 12, 12)
    y = vmap(lambda x: drop(x, inplace=True), randomness=randomness)(x)
    assert (x == 0).any()
    assert torch.equal(x, y)


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("side", [12, 256])  # of the larger one, a slice is more than PyTorch writes at once
def test_inplace_under_vmap_on_shared_memory_is_refused_before_anything_is_written(side, randomness):
    x = torch.ones(1, 32, side, side)
    with pytest.raises(ValueError, match="elements may share memory"):
        vmap(lambda x: drop(x, inplace=True), randomness=randomness)(x.expand(5, 1, 32, side, side))
    if randomness == "different":
        with pytest.raises(ValueError, match="elements may share memory"):
            vmap(lambda factor: drop(x, inplace=True) * factor, randomness=randomness)(torch.ones(5))
    assert torch.equal(x, torch.ones_like(x))


# --- the older vmap of torch.autograd ----------------------------------------------------------------------------


@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("backend", ["auto", "sparse", "reference"])
def test_batched_gradients_go_through_the_one_mask(backend, share_channels):
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    with use_backend(backend):
        y = drop(x, share_channels=share_channels)
    grads = torch.randn(4, *y.shape, dtype=torch.float64)
    (together,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads]
    assert torch.equal(together, torch.stack(one_by_one))
    assert (together == 0).any()


def test_vectorised_jacobian_and_hessian():
    layer = same_mask(lambda x, **options: drop_block2d(x, 2, **options))
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64)
    for derivative, function in (
        (functional.jacobian, layer),
        (functional.hessian, lambda x: (layer(x * x) * x).sum()),
    ):
        assert torch.allclose(derivative(function, x, vectorize=True), derivative(function, x))
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),), check_batched_grad=True)


# --- tensors without memory, and tensors whose memory holds something else ---------------------------------------


def zeros(like):
    """What PyTorch makes for a gradient that it knows to be zero: there is no memory behind it."""
    return torch._efficientzerotensor(like.shape, dtype=like.dtype)


BACKENDS = ["auto", "sparse", "reference"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_without_memory(backend, dtype):
    x = torch.rand(2, 3, 8, 8).add(1).to(dtype).requires_grad_()
    with use_backend(backend):
        y = drop(x)
        assert not drop(zeros(x)).any()
    (nothing,) = torch.autograd.grad(y, x, zeros(y), retain_graph=True)
    assert not nothing.any()
    (ones,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(ones == 0, y == 0), "the scale is still counted"


def test_public_code_that_makes_gradients_without_memory():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    torch.sgn(drop(x)).sum().backward()
    assert not x.grad.any()
    layer, target = same_mask(lambda x, **options: drop_block2d(x, 3, **options)), torch.zeros(2, 3, 8, 8)
    loss = torch.nn.functional.l1_loss(layer(x * x), target)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    (penalty,) = torch.autograd.grad(gradient.square().sum(), x)
    scale = layer(torch.ones_like(x)) / x.numel()
    torch.testing.assert_close(penalty, 8 * x.detach() * scale**2)
    _, product = functional.hvp(lambda x: torch.nn.functional.l1_loss(layer(x), target), x.detach(), torch.ones_like(x))
    assert not product.any()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_negative_views(backend, inplace):
    """As `x.conj().imag` gives: the memory holds the opposite of the values."""
    x, layer = torch.randn(2, 3, 8, 8), same_mask(lambda x, **options: drop_block2d(x, 3, **options))
    with use_backend(backend):
        expected = layer(x)
        view = (-x)._neg_view()
        assert view.is_neg()
        assert torch.equal(layer(view, inplace=inplace), expected)
        if inplace:
            assert torch.equal(view, expected)
        leaf = torch.randn(2, 3, 8, 8, requires_grad=True)
        y = layer(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, (-x)._neg_view())
    assert torch.equal(gradient, expected)


def test_a_sparse_gradient():
    x, index = torch.randn(2, 3, 8, 8, requires_grad=True), torch.zeros(2, 3, 8, 1, dtype=torch.int64)
    y = drop(x)
    (expected,) = torch.autograd.grad(y.gather(3, index).sum(), x, retain_graph=True)
    (gradient,) = torch.autograd.grad(y.gather(3, index, sparse_grad=True).sum(), x)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_wrap_other_tensors(backend):
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with use_backend(backend):
        y = drop(x)
    grad = torch.randn(2, 3, 8, 8)
    (expected,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    (both,) = torch.autograd.grad(y, x, TwoTensor(grad, 2 * grad), retain_graph=True)
    assert torch.equal(both.a, expected)
    assert torch.equal(both.b, 2 * expected)
    function = functionalize(lambda grad: torch.autograd.grad(y, x, grad, retain_graph=True)[0])
    assert torch.equal(function(grad), expected)
