"""The compiled CPU kernel, which makes one pass over the parameter and the gradient.

It takes the default cover and the singleton cover, in float32 and bfloat16. It treats a tensor of rank 3 or more as a
matrix. Its leading dimensions form the rows and the others the columns, divided where the fewest combined accumulators
are needed.

Its results have the same bits as those of the chunked kernel.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from . import chunked
from .compiler import library
from .matrix_view import MatrixView, as_matrix, is_matrix, is_singleton
from .momentum import FloatMomentum
from .task import Options, Task

THREADED = 1 << 15
"""The number of entries below which threads cost more than they save: PyTorch's own grain size."""

PARTIAL = 1 << 19
"""The number of maxima that the threads may hold together (2 MiB)."""

WIDE = 1 << 10
"""The number of columns per row above which threads share out the columns. If they shared out the rows of such a
tensor, they would hold more maxima than there are rows to share. Other tensors are read row by row as they lie in
memory, which the processor prefetches.
"""

_SECOND, _MAXIMA, _FIRST, _AVERAGE = 0, 1, 2, 3


class _Coefficients(ctypes.Structure):
    _fields_ = (
        *[(name, ctypes.c_float) for name in ("step", "rate", "momentum", "fresh")],
        *[(name, ctypes.c_float) for name in ("old_weight", "new_weight", "floor", "decay")],
    )

    @classmethod
    def of(cls, options: Options) -> _Coefficients:
        lr, beta = float(options.lr), options.beta
        return cls(
            step=lr * options.sign,
            rate=-lr,
            momentum=options.momentum,
            fresh=options.sign * (options.momentum - 1),
            old_weight=beta,
            new_weight=1 - beta,
            floor=options.eps**2,
            decay=1 - lr * options.weight_decay,
        )


def takes(task: Task) -> bool:
    """Return whether the kernel can run a task.

    The tensors must be plain CPU tensors that lie alike in memory, and the kernel must know their dtype and cover.

    Args:
        task: a dense task.
    """
    tensors = [task.param, task.grad]
    if task.momentum is not None:
        if not isinstance(task.momentum, FloatMomentum):
            return False
        tensors.append(task.momentum.buffer)
    if any(type(t) not in (Tensor, torch.nn.Parameter) or not t.is_cpu or not t.is_contiguous() for t in tensors):
        return False
    if task.param.dtype != task.grad.dtype or task.param.dtype not in (torch.float32, torch.bfloat16):
        return False
    if is_singleton(task):
        return task.accumulators[0].old.is_contiguous() and library() is not None
    return is_matrix(task) and library() is not None


def gather(task: Task) -> None:
    """Run the first half of a step, as `chunked.gather` does. In SM3-II it also updates the accumulators.

    Args:
        task: a task that `takes` accepts.
    """
    if is_singleton(task):
        return _vector(task)
    if task.options.variant == "II":
        matrix = as_matrix(task)
        _matrix(task, matrix, _AVERAGE if task.options.beta else _SECOND)
        matrix.write_back()
        return None
    for accumulator in task.accumulators:
        accumulator.new = torch.zeros_like(accumulator.old)
    matrix = as_matrix(task, new=True)
    _matrix(task, matrix, _MAXIMA)
    matrix.write_back()
    return None


def finish(task: Task) -> None:
    """Run the second half of a step, as `chunked.finish` does.

    Args:
        task: a task that `takes` accepts.
    """
    if task.options.variant == "II" or is_singleton(task):
        return
    chunked.add_maxima(task)
    matrix = as_matrix(task)
    _matrix(task, matrix, _FIRST)


def _dtypes(task: Task) -> int:
    halved = isinstance(task.momentum, FloatMomentum) and task.momentum.buffer.dtype == torch.bfloat16
    return int(task.param.dtype == torch.bfloat16) + 2 * int(halved)


def _threads(task: Task, shorter: int) -> int:
    if task.param.numel() < THREADED:
        return 1
    return max(1, min(torch.get_num_threads(), PARTIAL // max(1, shorter)))


def _matrix(task: Task, matrix: MatrixView, mode: int) -> None:
    along_rows = matrix.cols <= matrix.rows * WIDE
    shared = matrix.cols if along_rows else matrix.rows
    threads = _threads(task, shared)
    partial = torch.empty(threads * shared, dtype=torch.int32)
    _call(
        "sm3_matrix",
        ctypes.c_int(mode),
        ctypes.c_int(_dtypes(task)),
        *_pointers(task),
        _pointer(matrix.row),
        _pointer(matrix.column),
        _pointer(partial),
        ctypes.c_int64(matrix.rows),
        ctypes.c_int64(matrix.cols),
        ctypes.byref(_Coefficients.of(task.options)),
        ctypes.c_int(along_rows),
        ctypes.c_int(threads),
    )
    if mode != _MAXIMA:
        _mark_changed(task)


def _vector(task: Task) -> None:
    _call(
        "sm3_vector",
        ctypes.c_int(_AVERAGE if task.options.beta else _SECOND),
        ctypes.c_int(_dtypes(task)),
        *_pointers(task),
        _pointer(task.accumulators[0].old),
        ctypes.c_int64(math.prod(task.param.shape)),
        ctypes.byref(_Coefficients.of(task.options)),
        ctypes.c_int(_threads(task, 0)),
    )
    _mark_changed(task)


def _call(function: str, *arguments: object) -> None:
    compiled = library()
    assert compiled is not None
    getattr(compiled, function)(*arguments)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _pointers(task: Task) -> list[ctypes.c_void_p]:
    average = task.momentum.buffer if isinstance(task.momentum, FloatMomentum) else None
    return [_pointer(task.param), _pointer(task.grad), _pointer(average)]


def _mark_changed(task: Task) -> None:
    """Tell autograd that the parameter changed, so that it refuses a stale backward pass as it usually does."""
    torch.autograd.graph.increment_version(task.param)
