"""The memory that other CUDA kernels take for themselves: sorted indices, partial sums, unreduced losses.

| operator | takes | source (aten/src/ATen/native/, read for 2.13) |
|---|---|---|
| softmax, backward | gradient times output | `cuda/SoftMax.cu`, `softmax_backward_cuda_out` |
| losses | the unreduced loss | `BinaryOps.cpp`, `Loss.cpp`, `cuda/Loss.cu` |
| embedding, backward | above 3,072 indices: sorted copies of the indices, and partial sums in float32, with one row
  for each distinct index and one for every ten indices | `cuda/Embedding.cu`, `EmbeddingBackwardKernel.cu` |
| embedding bag, backward | the same | `cuda/EmbeddingBag.cu` |
| indexing, backward | positions, and sorted copies of them | `cuda/Indexing.cu`, `index_put_with_sort_kernel` |
| sort | positions, and the buffers of the sort of pairs | `cuda/Sort.cu` |
| cumulative sum of one row | 1,023 bytes | `cuda/ScanUtils.cuh` |
| group norm | factors for each channel | `cuda/group_norm_kernel.cu` |
| sums of integers and booleans | the input in the type of the result | `ReduceOpsUtils.h`, `make_reduction` |
| norms of lists of tensors | one number per 65,536 entries of the largest | `cuda/ForeachReduceOp.cu` |

The buffer that CUB's radix sort takes depends on its version: here it is known to within a third of a byte per entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from memprof.prediction.fake.event_log import Steps

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
aten = torch.ops.aten
_FLOAT, _INDEX = 4, 8
_SORTED_BY_BLOCK = 1024  # one block of threads sorts at most so many entries, without a buffer
_SCAN = 1023
_MAXIMUM = 2  # the mode of an embedding bag that takes the maximum


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _radix_sort(count: int, pair: int) -> int:
    """Return the bytes for a second copy of the pairs and for the counts of each digit."""
    return 1 if count <= 2048 else count * pair + count // 3 + 8192


def _softmax_backward(args: Args, kwargs: Kwargs) -> Steps:
    return [None, args[0].numel() * torch.promote_types(args[0].dtype, args[1].dtype).itemsize]


def _unreduced(args: Args, kwargs: Kwargs) -> Steps:
    """Return the unreduced loss, if it is reduced; the result's storage is as large (`_keeps_unreduced`)."""
    reduction = args[2] if len(args) > 2 else kwargs.get("reduction", 1)
    return [None, torch.broadcast_tensors(args[0], args[1])[0].numel() * args[0].element_size()] if reduction else []


def _huber(args: Args, kwargs: Kwargs) -> Steps:
    return [_bytes(args[0]), None] if (args[2] if len(args) > 2 else kwargs.get("reduction", 1)) else []


def _binary_cross_entropy(args: Args, kwargs: Kwargs) -> Steps:
    return [None, args[0].element_size()] if (args[3] if len(args) > 3 else kwargs.get("reduction", 1)) else []


def _with_logits(args: Args, kwargs: Kwargs) -> Steps:
    return [_bytes(args[0]), _bytes(args[0]), None]


def _embedding_backward(args: Args, kwargs: Kwargs) -> Steps:
    """Return the buffers of a kernel that sorts the indices and sums the gradient in segments of at most ten."""
    gradient, indices, rows = args[:3]
    count = indices.numel()
    by_frequency = bool(args[4]) if len(args) > 4 else False
    if count <= 3072 and not by_frequency:
        return []
    counts = [count * _INDEX, _SCAN] if by_frequency else []
    return [*_sorted_pairs(count), *counts, None, *_segments(count, rows, gradient.shape[-1])]


def _embedding_bag_backward(args: Args, kwargs: Kwargs) -> Steps:
    gradient, indices, rows, mode = args[0], args[1], args[6], args[8]
    if mode == _MAXIMUM:
        return []
    count = indices.numel()
    return [*_sorted_pairs(count), None, *_segments(count, rows, gradient.shape[-1])]


def _sorted_pairs(count: int) -> list[int]:
    size = count * _INDEX
    return [size, size, size, _radix_sort(count, 2 * _INDEX), -4, -3]


def _segments(count: int, rows: int, width: int) -> list[int]:
    segments = min(count, rows)
    partial = count // 10 + segments
    sums = partial * -(-width // 32) * 32 * _FLOAT
    return [count * _INDEX, _INDEX, segments * _INDEX, segments * _INDEX, _INDEX, partial * _INDEX, sums]


def _index_put(args: Args, kwargs: Kwargs) -> Steps:
    """Return, if `accumulate` is set, the buffers that sort the position of each entry together with its origin."""
    accumulate = args[3] if len(args) > 3 else kwargs.get("accumulate", False)
    indices = [index for index in args[1] if index is not None]
    if not accumulate or not indices:
        return []
    count = math.prod(torch.broadcast_shapes(*(index.shape for index in indices)))
    size = count * _INDEX
    steps = [size, size, -1]
    for _ in indices[1:]:
        taken = sum(step > 0 for step in steps)
        steps += [size, size, -(taken + 1), -(taken + 2)]
    return [*steps, size, size, size, _radix_sort(count, 2 * _INDEX)]


def _sort(args: Args, kwargs: Kwargs) -> Steps:
    tensor = args[0]
    place = next((value for value in args[1:] if type(value) is int), kwargs.get("dim", -1))
    length = tensor.shape[place] if tensor.dim() else 1
    count = tensor.numel()
    if length <= _SORTED_BY_BLOCK:
        return [None, length * _INDEX]
    if count == length:
        return [None, length * _INDEX, _radix_sort(count, _INDEX + tensor.element_size())]
    copies = [] if place in (-1, tensor.dim() - 1) else [_bytes(tensor), _bytes(tensor), count * _INDEX]
    first = len(copies) + 1
    pairs = [count * _INDEX, count * _INDEX, _bytes(tensor), _radix_sort(count, _INDEX + tensor.element_size())]
    return [None, *copies, *pairs, -(first + 3), -(first + 2)]


def _cumulative_sum(args: Args, kwargs: Kwargs) -> Steps:
    tensor = args[0]
    return [None, _SCAN] if tensor.dim() and tensor.numel() == tensor.shape[args[1]] else []


def _group_norm(args: Args, kwargs: Kwargs) -> Steps:
    weight, bias, batch, channels = args[1:5]
    return [] if weight is None and bias is None else [None, batch * channels * _FLOAT, batch * channels * _FLOAT]


def _group_norm_backward(args: Args, kwargs: Kwargs) -> Steps:
    weight, batch, channels, groups = args[4], args[5], args[6], args[8]
    per_channel, per_group = batch * channels * _FLOAT, batch * groups * _FLOAT
    last = [] if weight is None else [per_channel]
    return [None, per_channel, per_channel, *([per_group] * 2), *last]


def _foreach_norm(args: Args, kwargs: Kwargs) -> Steps:
    tensors = args[0]
    chunks = max((math.ceil(tensor.numel() / 65536) for tensor in tensors), default=0)
    return [len(tensors) * chunks * _FLOAT, None]


KERNELS: Mapping[Any, Callable[[Args, Kwargs], Steps]] = {
    aten._softmax_backward_data.default: _softmax_backward,
    aten.mse_loss.default: _unreduced,
    aten.smooth_l1_loss.default: _unreduced,
    aten.huber_loss.default: _huber,
    aten.binary_cross_entropy.default: _binary_cross_entropy,
    aten.binary_cross_entropy_with_logits.default: _with_logits,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten._embedding_bag_backward.default: _embedding_bag_backward,
    aten.index_put_.default: _index_put,
    aten.index_put.default: _index_put,
    aten._index_put_impl_.default: _index_put,
    aten.sort.default: _sort,
    aten.sort.stable: _sort,
    aten.cumsum.default: _cumulative_sum,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten._foreach_norm.Scalar: _foreach_norm,
}
