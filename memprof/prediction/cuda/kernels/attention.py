"""The memory that attention kernels take for themselves: partial results of split keys, float32 gradients, copies.

Sources, read for 2.13 (`aten/src/ATen/native/transformers/cuda/`): `flash_attn/flash_api.cpp` (`set_params_splitkv`,
`num_splits_heuristic`, `mha_bwd`), `attention_backward.cu`, `mem_eff_attention/kernel_backward.h`
(`workspace_elements_...`) and the order of the kernels in `mem_eff_attention/kernels/cutlassB.h`. Recordings of 2.6
and 2.15 for compute capability 7.5, 8.0, 8.6 and 9.0 show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memprof.devices.target import Target
from memprof.prediction.fake.event_log import Steps

aten = torch.ops.aten
_FLOAT = 4
_HALVES = (torch.float16, torch.bfloat16)


def attention_scratch(target: Target) -> Mapping[Any, Callable[[tuple[Any, ...], dict[str, Any]], Steps]]:
    """Return, for each operator of attention, the function that returns its steps.

    Args:
        target: The device and its PyTorch version.
    """
    return {
        aten._scaled_dot_product_flash_attention.default: partial(_flash_forward, target),
        aten._scaled_dot_product_flash_attention_backward.default: partial(_flash_backward, target),
        aten._scaled_dot_product_cudnn_attention_backward.default: partial(_cudnn_backward, target),
        aten._scaled_dot_product_efficient_attention.default: _efficient_forward,
        aten._scaled_dot_product_efficient_attention_backward.default: partial(_efficient_backward, target),
    }


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a number.

    Args:
        number: The number.
        multiple: The divisor of the result.
    """
    return -(-number // multiple) * multiple


def _width_of_kernel(target: Target, width: int) -> int:
    """Return the width to which the kernel pads: a multiple of 32, and since 2.7 of 64 beyond a width of 128."""
    return round_up(width, 64 if width > 128 and target.torch_version >= (2, 7) else 32)


def _flash_forward(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    """Return the partial outputs of the splits of the keys, which exist if too few blocks would fill the GPU."""
    query, key = args[:2]
    dropout = args[3] if len(args) > 3 else kwargs.get("dropout_p", 0.0)
    batch, heads, length, width = query.shape
    if dropout:
        return []
    block = 256 if width <= 64 else 128 if width <= 128 else 64
    splits = _splits(batch * heads * -(-length // 64), 2 * target.sm_count, -(-key.shape[2] // block))
    if splits == 1:
        return []
    rows = splits * batch * heads * length * _FLOAT
    return [None, rows, rows * _width_of_kernel(target, width)]


def _splits(blocks: int, processors: int, key_blocks: int) -> int:
    """Return the fewest splits that keep the GPU nearly as busy as the best number does (`num_splits_heuristic`)."""
    if blocks >= 0.8 * processors:
        return 1
    most = min(128, processors, key_blocks)
    busy = {}
    for splits in range(1, most + 1):
        if splits == 1 or -(-key_blocks // splits) != -(-key_blocks // (splits - 1)):
            waves = blocks * splits / processors
            busy[splits] = waves / -(-(blocks * splits) // processors)
    best = max(busy.values())
    return next(splits for splits, share in busy.items() if share >= 0.85 * best)


def _copies(*tensors: Tensor) -> list[int]:
    """Return the sizes of copies of tensors [batch, heads, length, width] that are not laid out by length first."""
    return [t.numel() * t.element_size() for t in tensors if not t.transpose(1, 2).is_contiguous()]


def _flash_backward(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    """Return copies of gradient and output, a number per row, the query's gradient in float32, and expanded keys."""
    gradient, query, key, _, output = args[:5]
    batch, heads, length, width = query.shape
    rows = round_up(length, 128)
    accumulated = [batch * heads * rows * _FLOAT, batch * rows * heads * _width_of_kernel(target, width) * _FLOAT]
    expanded = [batch * key.shape[2] * heads * width * key.element_size()] * 2 if key.shape[1] != heads else []
    return [*_copies(gradient, output), None, *accumulated, *expanded]


def _cudnn_backward(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    """Return what the flash kernel takes without its copies. This is an assumption: cuDNN does not document its own."""
    _, query = args[:2]
    batch, heads, length, width = query.shape
    rows = round_up(length, 128)
    return [batch * heads * rows * _FLOAT, batch * rows * heads * _width_of_kernel(target, width) * _FLOAT]


def _efficient_forward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    """Return the float32 output of halves that does not fit in registers (`kNeedsOutputAccumulatorBuffer`)."""
    query, value = args[0], args[2]
    if query.dtype not in _HALVES or value.shape[3] <= 128:
        return []
    return [None, query.shape[0] * query.shape[1] * query.shape[2] * value.shape[3] * _FLOAT]


def _efficient_backward(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    """Return a copy of the gradient, a number per row, and the tiles of the gradients in float32."""
    gradient, query, key, value = args[:4]
    rows = query.shape[0] * query.shape[1] * query.shape[2] * _FLOAT
    dropout = bool(args[9] if len(args) > 9 else kwargs.get("dropout_p", 0.0))
    half = query.dtype in _HALVES
    copies = _copies(gradient)
    expanded = [tensor[:, :1].numel() * query.shape[1] * tensor.element_size() for tensor in (key, value)]
    if key.shape[1] == query.shape[1]:
        expanded = []
    work = _tiles(target, query, key, value, dropout)
    if half:
        return [*copies, None, *expanded, rows, work]
    product = args[5].numel() * _FLOAT
    first = len(copies) + len(expanded) + 1
    return [*copies, None, *expanded, product, rows, rows, -(first + 1), -first, work]


def _tiles(target: Target, query: Tensor, key: Tensor, value: Tensor, dropout: bool) -> int:
    """Return the bytes of float32 tiles of the query's gradient, and the keys' beyond registers (`workspace_size`)."""
    batch, heads, length, width = query.shape
    half = query.dtype in _HALVES
    tile_rows, tile_keys, most = _kernel(target, half, max(width, value.shape[3]), dropout)
    in_registers = half and most <= tile_rows
    splits = -(-key.shape[2] // tile_keys)
    if batch * heads >= 256 and key.shape[2] <= 2 * tile_keys:
        splits = 1
    per_head = -(-length // tile_rows) * -(-width // tile_keys) * (4 + tile_rows * tile_keys)
    if half and not in_registers:
        splits = min(splits, 200 // (batch * heads))
        for wide in (width, value.shape[3]):
            per_head += max(splits, 1) * tile_keys * round_up(wide, tile_rows)
    return batch * heads * round_up(per_head, 4) * _FLOAT


def _kernel(target: Target, half: bool, width: int, dropout: bool) -> tuple[int, int, int]:
    """Return the rows and keys of a tile and the widest head, for the first kernel that fits in shared memory."""
    large = target.capability in ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3))
    if width <= 64:
        return 64, 64, 32 if width <= 32 else 64
    if half and target.capability >= (8, 0):
        if width <= 96 and not dropout:
            return 128, 64, 96
        if width <= 128:
            return (128, 128, 128) if large else (64, 64, 128)
    return 128 if large or half else 64, 64, 128 if width <= 128 else 65536
