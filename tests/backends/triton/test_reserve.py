"""Memory of a device that lives as long as the process."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("triton", reason="Triton is not installed")

from torch_dropblock.backends import triton
from torch_dropblock.backends.triton import reserve

CPU = torch.device("cpu")


def table(value):
    return torch.full((reserve.TABLE,), value, dtype=torch.float64)


def test_counters_are_taken_in_turn():
    memory = reserve.Reserve(CPU)
    first = [next(memory.counters) for _ in range(reserve.COUNTERS)]
    assert len({counter.data_ptr() for counter in first}) == reserve.COUNTERS
    assert all(counter.item() == 0 for counter in first)
    assert next(memory.counters).data_ptr() == first[0].data_ptr()


def test_the_place_of_a_table_that_ended_serves_the_next_of_its_stream():
    memory = reserve.Reserve(CPU)
    one, two = table(1.0), table(2.0)
    places = [memory.copied(one, 0), memory.copied(one, 7), memory.copied(two, 0)]
    assert [place.mean().item() for place in places] == [1.0, 1.0, 2.0]
    assert len({place.data_ptr() for place in places}) == 3
    ended = places[0].data_ptr()
    del one
    gc.collect()
    assert memory.copied(table(3.0), 8).data_ptr() not in {place.data_ptr() for place in places}
    assert memory.copied(table(4.0), 0).data_ptr() == ended


def test_more_tables_than_places(monkeypatch):
    monkeypatch.setattr(reserve, "TABLES", 2)
    memory = reserve.Reserve(CPU)
    tables = [table(float(i)) for i in range(4)]
    places = [memory.copied(each, 0) for each in tables]
    assert [place.mean().item() for place in places] == [0.0, 1.0, 2.0, 3.0]


def test_a_thread_that_comes_late_gets_a_place_too():
    assert reserve._popped([]) is None
    assert reserve._popped([1]) == 1


@pytest.mark.parametrize("trace", ["fake", "make_fx", "grad", "vmap", "inference", "functionalize"])
def test_the_memory_is_plain_whatever_traces_the_call(trace):
    """It outlives the trace that reserves it."""
    made, x, two = [], torch.ones(3), table(2.0)

    def function(x):
        made.append(reserve.Reserve(CPU))
        made.append(made[-1].copied(two, 0))
        return (x * x).sum()

    if trace == "fake":
        with FakeTensorMode():
            function(torch.ones(3))
    elif trace == "make_fx":
        make_fx(function)(x)
    elif trace == "inference":
        with torch.inference_mode():
            function(x)
    elif trace == "vmap":
        torch.func.vmap(function)(x)
    else:
        getattr(torch.func, trace)(function)(x)
    memory, place = made[:2]
    for tensor in (next(memory.counters), memory.tables[-1], place):
        assert type(tensor) is torch.Tensor
        assert tensor.data_ptr()
        assert not tensor.is_inference()
        assert not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    assert next(memory.counters).item() == 0
    next(memory.counters).add_(1)


def test_a_table_that_a_cuda_graph_reads_never_ends(monkeypatch):
    """The graph reads its copy at each replay, whatever the host has forgotten by then."""
    monkeypatch.setattr(triton, "OF_GRAPHS", {})
    read, copy = table(1.0), SimpleNamespace(is_cuda=True)
    assert triton._in_graph(torch.device("cuda", 0), read, {(0, 7): copy}) is copy
    ended = weakref.ref(read)
    del read
    gc.collect()
    assert ended() is not None


def test_a_device_has_one():
    assert reserve.of(CPU) is reserve.of(CPU)
