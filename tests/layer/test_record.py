"""The share that a layer dropped in its last pass: exact, on every backend, and unknown where nothing counted it."""

import copy
import pickle
import timeit

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from torch_dropblock import DropBlock1d, DropBlock2d, DropBlock3d, use_backend
from torch_dropblock.layer.record import Record


def recorded(layer=None, **options):
    layer = DropBlock2d(3, keep_prob=0.7, **options) if layer is None else layer
    layer.record = Record(lambda passes: 2 * passes, 100)
    return layer


def share_of_zeros(output):
    return (output == 0).double().mean().item()


@pytest.mark.parametrize("backend", ["auto", "native", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: DropBlock1d(5, keep_prob=0.8), (4, 8, 100)),
        (lambda: DropBlock2d(3, keep_prob=0.7), (4, 8, 16, 16)),
        (lambda: DropBlock2d(3, keep_prob=0.7, share_channels=True), (4, 8, 16, 16)),
        (lambda: DropBlock3d(2, keep_prob=0.5), (2, 4, 8, 8, 8)),
    ],
)
def test_the_share_is_the_one_of_the_output(backend, dtype, layer, shape):
    layer = recorded(layer())
    with use_backend(backend):
        output = layer(torch.ones(shape, dtype=dtype))
    assert layer.record.dropped() == pytest.approx(share_of_zeros(output), abs=1e-12)
    assert layer.record.units == output.numel()


def test_the_last_pass_counts_and_its_backward_pass_changes_nothing():
    layer = recorded()
    for _ in range(3):
        x = torch.ones(4, 8, 16, 16, requires_grad=True)
        output = layer(x)
        output.sum().backward()
        assert layer.record.dropped() == pytest.approx(share_of_zeros(output))
    assert layer.record.passes == 3


def test_activation_checkpointing_runs_the_same_pass_again():
    layer = recorded()
    x = torch.ones(4, 8, 16, 16, requires_grad=True)
    output = checkpoint(lambda x: layer(x).square(), x, use_reentrant=False)
    output.sum().backward()
    assert layer.record.dropped() == pytest.approx(share_of_zeros(output))
    assert layer.record.passes == 2


def test_nothing_and_everything():
    layer, x = recorded(), torch.ones(2, 4, 8, 8)
    assert layer.record.dropped() is None
    for keep_prob, share in ((0.0, 1.0), (1.0, 0.0)):
        layer.keep_prob = keep_prob
        layer(x)
        assert layer.record.dropped() == share
    layer(x[:0])
    assert layer.record.dropped() is None


@pytest.mark.parametrize("backend", ["auto", "sparse"])
def test_everything_by_chance(backend):
    layer, x = recorded(), torch.ones(1, 1, 3, 3)
    layer.keep_prob = 0.1
    with use_backend(backend):
        for _ in range(20):
            output = layer(x)
            assert layer.record.dropped() == share_of_zeros(output)


def test_evaluation_is_no_pass():
    layer = recorded()
    layer.eval()(torch.ones(2, 4, 8, 8))
    assert (layer.record.passes, layer.record.dropped()) == (0, None)


def test_where_nothing_is_counted():
    """A transform, and operators that a mode follows: unknown, not the share of an earlier pass."""
    layer, x = recorded(), torch.ones(2, 4, 8, 8)
    layer(x)
    torch.func.vmap(layer, randomness="different")(x.expand(3, *x.shape))
    assert layer.record.dropped() is None
    layer(x)
    layer(x.to("meta"))
    assert layer.record.dropped() is None
    layer(x)
    with use_backend("reference"):
        layer(x)
    assert layer.record.dropped() is None


def test_a_pass_before_the_last_step_is_forgotten():
    layer = recorded()
    layer(torch.ones(2, 4, 8, 8))
    layer.record.step()
    assert layer.record.dropped() > 0
    layer.record.step()
    assert layer.record.dropped() is None


def test_many_passes_without_a_step():
    asked = []
    layer = DropBlock2d(3)
    layer.record = Record(lambda passes: asked.append(passes) or 4 * passes, 5)
    for _ in range(25):
        layer(torch.ones(1, 1, 4, 4))
    assert asked == [5, 20]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_has_none(copied):
    assert copied(recorded()).record is None


def test_a_wrong_input_has_its_own_error():
    with pytest.raises(TypeError, match="input must be"):
        recorded()([1.0])


def test_it_costs_at_most_a_microsecond():
    record, call = Record(lambda passes: 2 * passes, 10**9), object()

    def a_pass():
        record.begin(0.9, 100)
        record.call = call

    assert min(timeit.repeat(a_pass, number=10_000, repeat=20)) / 10_000 < 1e-6


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_host_waits_only_when_it_reads():
    layer, x = recorded(), torch.ones(4, 8, 16, 16, device="cuda")
    layer(x)  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = layer(x)
        share = layer.record.dropped()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert share.item() == pytest.approx(share_of_zeros(output))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_each_replay_of_a_cuda_graph_has_its_own_share():
    layer, x = recorded(), torch.ones(4, 8, 16, 16, device="cuda")
    layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(x)
    share, shares = layer.record.dropped, []
    for _ in range(5):
        graph.replay()
        shares.append(share().item())
        assert shares[-1] == pytest.approx(share_of_zeros(output))
    assert len(set(shares)) > 1
