"""The CUDA kernel, in Triton: one pass that reads the gradient and reads and writes the parameter and momentum.

A program owns a block of rows and goes along them, or a block of columns and goes down them, depending on which side of
the matrix is longer. It overwrites the accumulators that it owns. The maxima of the other side go to a second copy, by
atomic maxima of their bits. Second moments are never negative, so their bits have the same order as integers, and a
maximum is exact in any order. If there are too few blocks to fill a GPU, several programs share one block, and the
maxima of that side go to a second copy too. Nothing waits for the host, so a step can be captured in a CUDA graph, with
the learning rate as a tensor if it is to change.

Every operation is rounded separately, as in the portable kernel on CUDA: there is no fused multiply-add, and roots and
quotients are correctly rounded.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from . import chunked, launch_grid
from .accumulators import GridAccumulator
from .matrix_view import MatrixView, as_matrix, is_matrix, is_singleton
from .momentum import FloatMomentum
from .task import MIN_EPS, Options, Task
from .triton_kernels import matrix_kernel, vector_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SECOND, _MAXIMA, _FIRST = 0, 1, 2
_TRIAL = Options(lr=0.0, momentum=0.0, beta=0.0, eps=MIN_EPS, weight_decay=0.0, maximize=False, variant="II")
_VECTOR = 1024


def takes(task: Task) -> bool:
    """Return whether the kernel can run a task.

    The tensors must be plain CUDA tensors that lie alike in memory, and the kernel must know their dtype and cover.
    With `TRITON_INTERPRET=1` the kernel takes CPU tensors too, which is how it is tested without a GPU.

    Args:
        task: a dense task.
    """
    tensors = [task.param, task.grad]
    if task.momentum is not None:
        if not isinstance(task.momentum, FloatMomentum):
            return False
        tensors.append(task.momentum.buffer)
    if any(type(t) not in (Tensor, torch.nn.Parameter) or not t.is_contiguous() for t in tensors):
        return False
    if task.param.dtype not in DTYPES or task.grad.dtype not in DTYPES or 0 in task.param.shape:
        return False
    if not (task.param.is_cuda or triton.knobs.runtime.interpret) or torch.version.hip:
        return False
    if is_singleton(task):
        return task.accumulators[0].old.is_contiguous()
    return is_matrix(task)


@cache
def works(device: torch.device) -> bool:
    """Return whether the kernel runs on a device, by trying it on one number. Warn if it does not.

    Triton needs a C compiler and a GPU that it supports.

    Args:
        device: a CUDA device.
    """
    number = torch.zeros(1, device=device)
    task = Task(number, number.clone(), [GridAccumulator(number.clone(), (1,))], None, _TRIAL)
    try:
        gather(task)
    except Exception as error:  # Triton, its compilers and its driver raise many types
        warnings.warn(f"SM3 takes its slower portable kernel, as Triton fails here: {error}", RuntimeWarning, 2)
        return False
    return True


def gather(task: Task) -> None:
    """Run the first half of a step, as `chunked.gather` does. In SM3-II it also updates the accumulators.

    Args:
        task: a task that `takes` accepts.
    """
    if is_singleton(task):
        return _vector(task)
    first = task.options.variant == "I"
    if first:
        for accumulator in task.accumulators:
            accumulator.new = torch.zeros_like(accumulator.old)
    matrix = as_matrix(task, new=first)
    _matrix(task, matrix, _MAXIMA if first else _SECOND)
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


def _options(task: Task) -> dict[str, Any]:
    """Return the arguments that both kernels share."""
    options, lr = task.options, task.options.lr
    on_device = isinstance(lr, Tensor) and lr.device == task.param.device
    average = task.momentum.buffer if isinstance(task.momentum, FloatMomentum) else task.param
    return {
        "param": task.param,
        "grad": task.grad,
        "average": average,
        "lr_value": 0.0 if on_device else float(lr),
        "lr_tensor": lr if on_device else task.param,
        "momentum": float(options.momentum),
        "fresh": options.sign * (options.momentum - 1),
        "sign": options.sign,
        "old_weight": float(options.beta or 1),
        "new_weight": 1.0 - options.beta,
        "floor": float(options.eps) ** 2,
        "decay_value": 1.0 if on_device else 1.0 - float(lr) * options.weight_decay,
        "weight_decay": float(options.weight_decay),
        "averages": task.momentum is not None,
        "decays": options.weight_decay != 0,
        "lr_in_tensor": on_device,
        "enable_fp_fusion": False,
    }


def _matrix(task: Task, matrix: MatrixView, mode: int) -> None:
    by_rows, programs, shares = launch_grid.launch_of(matrix.rows, matrix.cols)
    own, other = (matrix.row, matrix.column) if by_rows else (matrix.column, matrix.row)
    maxima = torch.zeros_like(other, dtype=torch.int32)
    own_maxima = torch.zeros_like(own, dtype=torch.int32) if shares > 1 else maxima
    with torch.cuda.device_of(task.param):  # Triton launches on the current device
        matrix_kernel[(programs, shares)](
            row=matrix.row,
            column=matrix.column,
            maxima=maxima,
            own_maxima=own_maxima,
            rows=matrix.rows,
            cols=matrix.cols,
            mode=mode,
            by_rows=by_rows,
            shared=shares > 1,
            height=launch_grid.HEIGHT,
            width=launch_grid.WIDTH,
            **_options(task),
        )
    if mode != _FIRST:
        other.copy_(maxima.view(torch.float32))
        if shares > 1:
            own.copy_(own_maxima.view(torch.float32))
    if mode != _MAXIMA:
        torch.autograd.graph.increment_version(task.param)


def _vector(task: Task) -> None:
    numel = task.param.numel()
    with torch.cuda.device_of(task.param):
        vector_kernel[(triton.cdiv(numel, _VECTOR),)](
            accumulator=task.accumulators[0].old, numel=numel, block=_VECTOR, **_options(task)
        )
    torch.autograd.graph.increment_version(task.param)
