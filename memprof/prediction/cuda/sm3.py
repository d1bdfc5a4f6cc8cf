"""Makes SM3 allocate what its Triton kernel would allocate on CUDA, without Triton and without the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from sm3 import kernels
from sm3.kernels import chunked
from sm3.kernels.launch_grid import launch_of
from sm3.kernels.matrix_view import as_matrix, is_matrix, is_singleton
from sm3.kernels.momentum import FloatMomentum
from sm3.kernels.scratch import Scratch
from sm3.kernels.task import Task

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _TritonStandIn:
    """Allocates what `sm3.kernels.triton_cuda` does, in the same order: the maxima of one or both sides per pass."""

    name = "triton"

    def takes(self, task: Task) -> bool:
        """Return whether the kernel would take a task: every dense one that the compiled CPU kernel takes.

        Args:
            task: The task.
        """
        floats = isinstance(task.momentum, FloatMomentum | None)
        return floats and task.param.dtype in _DTYPES and bool(task.param.numel()) and _is_plain(task)

    def automatic(self, task: Task) -> bool:
        """Return True, because the kernel is the default on CUDA."""
        return True

    def gather(self, task: Task, scratch: Scratch) -> None:
        """Allocate the same as the first half of a step.

        Args:
            task: The task.
            scratch: Scratch memory, which this kernel does not use.
        """
        if is_singleton(task):
            return
        first = task.options.variant == "I"
        if first:
            for accumulator in task.accumulators:
                accumulator.new = torch.zeros_like(accumulator.old)
        self._pass(task, first)

    def finish(self, task: Task, scratch: Scratch) -> None:
        """Allocate the same as the second half of a step.

        Args:
            task: The task.
            scratch: Scratch memory, which this kernel does not use.
        """
        if task.options.variant == "II" or is_singleton(task):
            return
        chunked.add_maxima(task)
        self._pass(task, False)

    def _pass(self, task: Task, new: bool) -> None:
        matrix = as_matrix(task, new=new)
        launch = launch_of(matrix.rows, matrix.cols)
        own, other = (matrix.row, matrix.column) if launch.by_rows else (matrix.column, matrix.row)
        maxima = torch.zeros_like(other, dtype=torch.int32)
        own_maxima = torch.zeros_like(own, dtype=torch.int32) if launch.shares > 1 else maxima
        other.copy_(maxima.view(torch.float32))
        if launch.shares > 1:
            own.copy_(own_maxima.view(torch.float32))
        matrix.write_back()


def _is_plain(task: Task) -> bool:
    return task.param.is_contiguous() and task.grad.is_contiguous() and (is_singleton(task) or is_matrix(task))


@contextmanager
def triton_kernel() -> Iterator[None]:
    """Make SM3 prefer the stand-in within the `with` block, as it prefers its Triton kernel on CUDA."""

    def choose(task: Task, choice: str) -> kernels.Kernel:
        stand_in = _TritonStandIn()
        if choice in ("auto", "triton") and stand_in.takes(task):
            return stand_in
        return chosen(task, "chunked" if choice == "auto" else choice)

    chosen = kernels.choose
    with patch("sm3.optimizer.choose", choose):
        yield
