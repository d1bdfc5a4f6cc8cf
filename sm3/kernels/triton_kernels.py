"""The code that runs on the GPU. `triton_cuda.py` explains it, makes its arguments and launches it.

The matrix kernel has three modes: 0 is SM3-II, 1 takes only the maxima of g^2, and 2 is SM3-I after its sums are
complete. Offsets are 64-bit, as tensors may have more than 2^31 entries or rows.

`average` is the momentum buffer, used if `averages` is set. The learning rate is `lr_tensor` if `lr_in_tensor` is set,
otherwise `lr_value`. `fresh` is the factor of the new gradient in the average, `floor` is eps^2, and `decay` is the
factor of weight decay, used if `decays` is set. `maxima` and `own_maxima` are second copies of accumulators, as bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def descend_tile(  # type: ignore[no-untyped-def]
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
    """Update the parameter at some offsets, and its momentum if there is any."""
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
def matrix_kernel(  # type: ignore[no-untyped-def]
    param,
    grad,
    average,
    row,
    column,
    maxima,
    own_maxima,
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
    shared: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """Update this program's share of a block of rows or columns, tile by tile."""
    lr = lr_value
    decay = decay_value
    if lr_in_tensor:
        lr = tl.load(lr_tensor).to(tl.float32)
        decay = 1.0 - lr * weight_decay
    own = tl.program_id(0).to(tl.int64)
    if by_rows:
        blocks = tl.cdiv(cols, width)
        top = tl.zeros((height,), dtype=tl.int32)
    else:
        blocks = tl.cdiv(rows, height)
        top = tl.zeros((width,), dtype=tl.int32)
    share = tl.cdiv(blocks, tl.num_programs(1))
    first = tl.program_id(1).to(tl.int64) * share
    for block in range(first, tl.minimum(first + share, blocks)):
        i = (own if by_rows else block) * height + tl.arange(0, height)
        j = (block if by_rows else own) * width + tl.arange(0, width)
        mask = (i < rows)[:, None] & (j < cols)[None, :]
        at = i[:, None] * cols + j[None, :]
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
            descend_tile(param, average, at, mask, g, nu, lr, momentum, fresh, sign, floor, decay, averages, decays)
    if mode != 2:
        if by_rows:
            k = own * height + tl.arange(0, height)
            mine = k < rows
        else:
            k = own * width + tl.arange(0, width)
            mine = k < cols
        if shared:
            tl.atomic_max(own_maxima + k, top, mask=mine, sem="relaxed")
        else:
            tl.store((row if by_rows else column) + k, top.to(tl.float32, bitcast=True), mask=mine)


@triton.jit  # type: ignore[untyped-decorator]
def vector_kernel(  # type: ignore[no-untyped-def]
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
    """Update a block of entries that each have their own accumulator."""
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
    descend_tile(param, average, at, mask, g, nu, lr, momentum, fresh, sign, floor, decay, averages, decays)
