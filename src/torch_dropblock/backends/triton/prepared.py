"""Launch a kernel again and again with the same numbers, and only the tensors different.

Triton looks at every argument of every launch, to find the machine code for it. That takes the host longer than the
launch itself. Here it happens once for each set of numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Prepared:
    """A kernel with its grid, its numbers and its constants.

    The kernel's parameters are tensors first, then numbers, then constants. What Triton compiles depends on the dtypes
    of the tensors too, and on which of them start at a multiple of 16 bytes; `kind` distinguishes them.

    Args:
        kernel: the `triton.jit` function.
        programs: number of programs.
        numbers: the kernel's integers, in order.
        constants: its `constexpr` parameters by name, in order.
        options: options of Triton's compiler, such as `num_warps`.
    """

    def __init__(
        self, kernel: Any, programs: int, numbers: tuple[int, ...], constants: dict[str, Any], **options: Any
    ) -> None:
        self.kernel, self.grid, self.options = kernel, (programs, 1, 1), options
        self.numbers, self.constants = numbers, constants
        self.rest = (*numbers, *constants.values())
        self.launches: dict[Any, Any] = {}

    def __call__(self, device: torch.device, *tensors: Tensor, kind: Any = None) -> None:
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton launches on the current one
                return self(device, *tensors, kind=kind)
        launch = self.launches.get((device.index, kind))
        if launch is not None:
            launch(*tensors, *self.rest)
        elif (compiled := self.first(*tensors)) is not None:
            self.launches[device.index, kind] = compiled[self.grid]
        return None

    def first(self, *tensors: Tensor) -> Any:
        """Launch through Triton, and return the compiled kernel; None in the interpreter, which compiles nothing."""
        return self.kernel[self.grid](*tensors, *self.numbers, **self.constants, **self.options)
