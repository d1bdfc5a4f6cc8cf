"""The memory that FSDP's copies take for themselves: tables by which each block of a kernel finds what it copies.

Sources: `pack_vecs`, `split_with_sizes_copy_out_cuda_contiguous_no_cast` and `get_chunk_cat_metadata` in
aten/src/ATen/native/cuda/TensorShape.cu; `_pad_chunk` in aten/src/ATen/native/TensorShape.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from memprof.devices.context import threads_per_sm
from memprof.devices.target import Target
from memprof.prediction.fake.accumulation import is_dense
from memprof.prediction.fake.event_log import Steps

aten = torch.ops.aten
_ENTRY = 8  # bytes of an entry of the tables
_THREADS = 128  # of a block
_TILE = 16 * _THREADS  # bytes that a block copies at once


def sharding_scratch(target: Target) -> Mapping[Any, Callable[[tuple[Any, ...], dict[str, Any]], Steps]]:
    """Return, for each operator that copies from gathered or to scattered buffers, the function that returns its steps.

    Args:
        target: The device.
    """
    return {aten.split_with_sizes_copy.out: _Splits(target), aten._chunk_cat.out: _concatenation}


class _Splits:
    """The copy from a buffer to many tensors. Its table has an entry for every block of threads.

    Args:
        target: The device, whose threads limit the number of blocks.
    """

    def __init__(self, target: Target) -> None:
        self._most_blocks = 2 * target.sm_count * threads_per_sm(target.capability) // _THREADS

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
        """Return the bytes of the table, or nothing if a tensor has gaps or another type than the buffer."""
        source, sizes, dim = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("dim", 0)
        outputs = kwargs["out"]
        if not all(is_dense(tensor) and tensor.dtype is source.dtype for tensor in (source, *outputs)):
            return []
        chunks = [size * source.stride(dim) * source.element_size() for size in sizes]
        rows = math.prod(source.shape[:dim])
        turns = self._turns(sum(-(-chunk // _TILE) for chunk in chunks) * rows, rows)
        blocks = sum(-(-chunk // (_TILE * turns)) for chunk in chunks)
        return [_ENTRY * (4 * len(sizes) + 1 + blocks)]

    def _turns(self, blocks: int, rows: int) -> int:
        """Return how often each block copies a tile of a row."""
        factor = -(-blocks // self._most_blocks)
        return -(-factor // min(math.ceil(math.sqrt(factor)), rows))


def _concatenation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    """Return the bytes of the table for copying many tensors into the chunks of a buffer: an entry for each block."""
    tensors, dim, count = args
    out: Tensor = kwargs["out"]
    types = (tensors[0].dtype, out.dtype)
    if not all(map(is_dense, tensors)) or (types[0] is not types[1] and types != (torch.bfloat16, torch.float32)):
        return padded_copies(args)
    chunks = [_rows(tensor, dim, count) * math.prod(tensor.shape[dim + 1 :]) * out.element_size() for tensor in tensors]
    blocks = sum(-(-chunk // _TILE) for chunk in chunks)
    return [_ENTRY * (6 * len(tensors) + 2 + blocks)]


def padded_copies(args: tuple[Any, ...]) -> Steps:
    """Return the padded copies of tensors that do not divide evenly, which every device except a GPU makes.

    Args:
        args: The arguments of `aten::_chunk_cat.out`: the tensors, the dimension and the number of chunks.
    """
    tensors, dim, count = args
    uneven = [tensor for tensor in tensors if tensor.shape[dim] % count]
    return [
        _rows(t, dim, count) * count * math.prod(t.shape[dim + 1 :]) * math.prod(t.shape[:dim]) * t.element_size()
        for t in uneven
    ]


def _rows(tensor: Tensor, dim: int, count: int) -> int:
    return -(-int(tensor.shape[dim]) // count)
