"""The CUDA kernel, in Triton: one pass that reads the gradient and reads and writes the parameter (and momentum).

A program owns a block of rows and walks along them, or of columns and walks down, whichever side is longer: its own
accumulators it overwrites, maxima of the other side go to a second copy by atomic maxima of their bits (second moments
are never negative, so their bits order as integers do). Nothing waits for the host: a step can be captured in a CUDA
graph, with the learning rate as a tensor if it is to change.

Every operation is rounded by itself, as in the portable kernel on CUDA: no fused multiply-add, correctly rounded root
and quotient.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import chunked
from .matrix import Matrix, as_matrix, is_matrix, is_singleton
from .momentum import FloatMomentum
from .task import Task

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SECOND, _MAXIMA, _FIRST = 0, 1, 2
_NARROW, _WIDE = 16, 256
_VECTOR = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _descend(  # type: ignore[no-untyped-def]
    param,
    average,
    at,
    mask,
    grad,
    nu,
    lr,
    momentum,
    fresh,
    sign,
    floor,
    decay,
    averages: tl.constexpr,
    decays: tl.constexpr,
):
    root = tl.sqrt_rn(tl.where(nu < floor, floor, nu))
    value = tl.load(param + at, mask=mask, other=0.0).to(tl.float32)
    if decays:
        value = (value * decay).to(param.dtype.element_ty).to(tl.float32)
    if averages:
        mean = tl.load(average + at, mask=mask, other=0.0).to(tl.float32)
        mean = mean * momentum - tl.div_rn(grad * fresh, root)
        tl.store(average + at, mean.to(average.dtype.element_ty), mask=mask)
        value = value + mean * -lr
    else:
        value = value - tl.div_rn(grad * (lr * sign), root)
    tl.store(param + at, value.to(param.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _matrix_kernel(  # type: ignore[no-untyped-def]
    param,
    grad,
    average,
    row,
    column,
    maxima,
    rows,
    cols,
    lr_value,
    lr_tensor,
    momentum,
    fresh,
    sign,
    old_weight,
    new_weight,
    floor,
    decay_value,
    weight_decay,
    mode: tl.constexpr,
    by_rows: tl.constexpr,
    averages: tl.constexpr,
    decays: tl.constexpr,
    lr_in_tensor: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    lr = lr_value
    decay = decay_value
    if lr_in_tensor:
        lr = tl.load(lr_tensor).to(tl.float32)
        decay = 1.0 - lr * weight_decay
    own = tl.program_id(0)
    if by_rows:
        blocks = tl.cdiv(cols, width)
        top = tl.zeros((height,), dtype=tl.int32)
    else:
        blocks = tl.cdiv(rows, height)
        top = tl.zeros((width,), dtype=tl.int32)
    for block in range(blocks):
        i = (own if by_rows else block) * height + tl.arange(0, height)
        j = (block if by_rows else own) * width + tl.arange(0, width)
        mask = (i < rows)[:, None] & (j < cols)[None, :]
        at = i.to(tl.int64)[:, None] * cols + j[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        if mode == 1:
            nu = g * g
        else:
            r = tl.load(row + i, mask=i < rows, other=0.0)[:, None]
            c = tl.load(column + j, mask=j < cols, other=0.0)[None, :]
            nu = tl.minimum(r, c, propagate_nan=tl.PropagateNan.ALL)
            if mode == 0:
                nu = nu * old_weight + (g * g) * new_weight
        if mode != 2:
            bits = tl.where(mask, nu.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)
            if by_rows:
                top = tl.maximum(top, tl.max(bits, axis=1))
                tl.atomic_max(maxima + j, tl.max(bits, axis=0), mask=j < cols, sem="relaxed")
            else:
                top = tl.maximum(top, tl.max(bits, axis=0))
                tl.atomic_max(maxima + i, tl.max(bits, axis=1), mask=i < rows, sem="relaxed")
        if mode != 1:
            _descend(param, average, at, mask, g, nu, lr, momentum, fresh, sign, floor, decay, averages, decays)
    if mode != 2:
        if by_rows:
            i = own * height + tl.arange(0, height)
            tl.store(row + i, top.to(tl.float32, bitcast=True), mask=i < rows)
        else:
            j = own * width + tl.arange(0, width)
            tl.store(column + j, top.to(tl.float32, bitcast=True), mask=j < cols)


@triton.jit  # type: ignore[untyped-decorator]
def _vector_kernel(  # type: ignore[no-untyped-def]
    param,
    grad,
    average,
    accumulator,
    numel,
    lr_value,
    lr_tensor,
    momentum,
    fresh,
    sign,
    old_weight,
    new_weight,
    floor,
    decay_value,
    weight_decay,
    averages: tl.constexpr,
    decays: tl.constexpr,
    lr_in_tensor: tl.constexpr,
    block: tl.constexpr,
):
    lr = lr_value
    decay = decay_value
    if lr_in_tensor:
        lr = tl.load(lr_tensor).to(tl.float32)
        decay = 1.0 - lr * weight_decay
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = at < numel
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    nu = tl.load(accumulator + at, mask=mask, other=0.0) * old_weight + (g * g) * new_weight
    tl.store(accumulator + at, nu, mask=mask)
    _descend(param, average, at, mask, g, nu, lr, momentum, fresh, sign, floor, decay, averages, decays)


def takes(task: Task) -> bool:
    """Say whether it can run a task: plain CUDA tensors, alike in memory, of a dtype and cover it knows.

    Under `TRITON_INTERPRET=1` it takes CPU tensors too: that is how it is tested where there is no GPU.
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
    if not (task.param.is_cuda or triton.knobs.runtime.interpret):
        return False
    if is_singleton(task):
        return task.accumulators[0].old.is_contiguous()
    return is_matrix(task)


def gather(task: Task) -> None:
    """As `chunked.gather`; in SM3-II the accumulators are new when it returns."""
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
    """As `chunked.finish`."""
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
        "momentum": options.momentum,
        "fresh": options.sign * (options.momentum - 1),
        "sign": options.sign,
        "old_weight": options.beta or 1.0,
        "new_weight": 1 - options.beta,
        "floor": options.eps**2,
        "decay_value": 1.0 if on_device else 1 - float(lr) * options.weight_decay,
        "weight_decay": options.weight_decay,
        "averages": task.momentum is not None,
        "decays": options.weight_decay != 0,
        "lr_in_tensor": on_device,
        "enable_fp_fusion": False,
    }


def _matrix(task: Task, matrix: Matrix, mode: int) -> None:
    by_rows = matrix.rows >= matrix.cols
    other = matrix.column if by_rows else matrix.row
    maxima = torch.zeros_like(other, dtype=torch.int32)
    programs = triton.cdiv(matrix.rows, _NARROW) if by_rows else triton.cdiv(matrix.cols, _WIDE)
    _matrix_kernel[(programs,)](
        row=matrix.row,
        column=matrix.column,
        maxima=maxima,
        rows=matrix.rows,
        cols=matrix.cols,
        mode=mode,
        by_rows=by_rows,
        height=_NARROW,
        width=_WIDE,
        **_options(task),
    )
    if mode != _FIRST:
        other.copy_(maxima.view(torch.float32))
    if mode != _MAXIMA:
        torch.autograd.graph.increment_version(task.param)


def _vector(task: Task) -> None:
    numel = task.param.numel()
    _vector_kernel[(triton.cdiv(numel, _VECTOR),)](
        accumulator=task.accumulators[0].old, numel=numel, block=_VECTOR, **_options(task)
    )
    torch.autograd.graph.increment_version(task.param)
