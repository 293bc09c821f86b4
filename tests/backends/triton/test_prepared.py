"""A kernel is analysed once for each kind of tensors, and launched with the arguments of the call."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from torch_dropblock.backends.triton.prepared import Prepared

CPU = torch.device("cpu")


class Kernel:
    """Stands for a `triton.jit` function: the first launch returns what Triton compiled, which notes its launches."""

    def __init__(self):
        self.analysed, self.launched = [], []

    def __getitem__(self, grid):
        def first(*arguments, **options):
            self.analysed.append((grid, arguments, options))
            return self.Compiled(self.launched)

        return first

    class Compiled:
        def __init__(self, launched):
            self.launched = launched

        def __getitem__(self, grid):
            return lambda *arguments: self.launched.append((grid, arguments))


def test_the_first_launch_of_each_kind_is_analysed_and_the_others_are_not():
    kernel, tensors = Kernel(), torch.zeros(3, 2).unbind()
    prepared = Prepared(kernel, 7, (4, 5), {"WIDE": True}, num_warps=2)
    for tensor in tensors:
        prepared(CPU, tensor, kind="aligned")
    assert kernel.analysed == [((7, 1, 1), (tensors[0], 4, 5), {"WIDE": True, "num_warps": 2})]
    assert kernel.launched == [((7, 1, 1), (tensor, 4, 5, True)) for tensor in tensors[1:]]
    prepared(CPU, tensors[0], kind="not aligned")
    assert len(kernel.analysed) == 2
    assert len(kernel.launched) == 2


def test_the_interpreter_compiles_nothing():
    calls = []

    class Interpreted:
        def __getitem__(self, grid):
            return lambda *arguments, **options: calls.append(arguments)

    prepared = Prepared(Interpreted(), 1, (), {})
    for _ in range(2):
        prepared(CPU, torch.zeros(1))
    assert len(calls) == 2
