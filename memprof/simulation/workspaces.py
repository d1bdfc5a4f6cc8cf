"""Memory that CUDA kernels take for themselves, which no meta kernel shows.

| what | bytes | source |
|---|---|---|
| cuBLAS | 8,519,680; 32 MiB from compute capability 9.0 on. To 2.14 kept by each thread that multiplies matrices: the
  main one and the backward pass's. From 2.15 on taken and given back by each product | `CublasHandlePool.cpp`,
  `parseChosenWorkspaceSize`; `CUBLAS_WORKSPACE_CONFIG` is honoured |
| cuBLASLt | 1 MiB for each linear layer with a bias, before 2.7; since then it shares the cuBLAS one |
  `CUDABlas.cpp`, `gemm_and_bias` |
| flash attention, backward | float32 copy of the query's gradient, rows rounded to 128 and width to 32 (from 128 on
  to 64); one number per row; with grouped heads the gradients of key and value for all heads | `flash_api.cpp`,
  `mha_bwd` |
| memory-efficient attention, backward | one number per row; for halves a float32 copy of the query's gradient, in
  tiles of 64 x 64 | `attention_backward.cu`, `mem_eff_attention/kernel_backward.h` |
| embedding, backward | above 3,072 indices: sorted copies of the indices, and partial sums in float32, one row for
  each index and each ten | `Embedding.cu`, `EmbeddingBackwardKernel.cu` |
| norms of lists of tensors | one number per 65,536 entries of the largest | `ForeachReduceOp.cu` |

What cuDNN takes for convolutions is decided by its own heuristics and not in the table; nor is what attention through
cuDNN takes beyond the flash kernel's accumulator, which is assumed for it. No entry has been checked against a
recording yet.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from memprof.simulation.target import Target

Scratch = Callable[[tuple[Any, ...], dict[str, Any]], list[int]]
aten = torch.ops.aten

_KIB, _MIB = 2**10, 2**20
_PRODUCTS = (
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default),
    *(aten.addmv.default, aten.dot.default, aten._addmm_activation.default),
)
_FLOAT = 4
_INDEX = 8


def cublas_bytes(target: Target) -> int:
    """Return the size of one cuBLAS workspace; 0 if `CUBLAS_WORKSPACE_CONFIG` says so."""
    pairs = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
    if pairs:
        return sum(int(size) * int(count) for size, count in pairs) * _KIB
    return 32 * _MIB if target.capability >= (9, 0) else (4096 * 2 + 16 * 8) * _KIB


class Workspaces:
    """What the operators of one training take, beside what they return.

    Args:
        target: the device and its PyTorch.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._kept_by: set[bool] = set()  # threads that have a cuBLAS workspace: main, backward
        self._scratch: Mapping[Any, Scratch] = {
            **dict.fromkeys(_PRODUCTS, self._product),
            aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
            aten._scaled_dot_product_cudnn_attention_backward.default: _flash_backward,
            aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
            aten.embedding_dense_backward.default: _embedding_backward,
            aten._foreach_norm.Scalar: _foreach_norm,
        }

    @property
    def operators(self) -> frozenset[Any]:
        """The operators that take something."""
        return frozenset(self._scratch)

    def scratch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """Return the sizes of the blocks that an operator takes and gives back."""
        return [size for size in self._scratch[func](args, kwargs) if size]

    def kept(self, func: Any, backward: bool) -> int:
        """Return the bytes that an operator takes for good: the workspace of its thread, the first time."""
        persistent = self._target.torch_version < (2, 15) or os.environ.get("TORCH_CUBLAS_WORKSPACE_CACHE") == "1"
        if func not in _PRODUCTS or not persistent or backward in self._kept_by:
            return 0
        self._kept_by.add(backward)
        return cublas_bytes(self._target)

    def _product(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        version = self._target.torch_version
        if version >= (2, 15) and os.environ.get("TORCH_CUBLAS_WORKSPACE_CACHE") != "1":
            return [cublas_bytes(self._target)]
        biased = len(args) == 3 and args[0].dim() == 1 and args[1].dim() == 2
        return [_MIB] if version < (2, 7) and biased else []


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _flash_backward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    _, query, key = args[:3]
    batch, heads, length, width = query.shape
    rows = _round_up(length, 128)
    wide = _round_up(width, 32 if width <= 128 else 64)
    sizes = [batch * heads * rows * _FLOAT, batch * rows * heads * wide * _FLOAT]
    if key.shape[1] != heads:
        sizes += [batch * key.shape[2] * heads * width * key.element_size()] * 2
    return sizes


def _efficient_backward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    query = args[1]
    batch, heads, length, width = query.shape
    rows = batch * heads * length * _FLOAT
    if query.dtype is torch.float32:
        return [rows]
    return [rows, batch * heads * _round_up(length, 64) * _round_up(width, 64) * _FLOAT]


def _embedding_backward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    gradient, indices, rows = args[:3]
    count = indices.numel()
    if count <= 3072:
        return []
    segments = min(count, rows)
    partial = count // 10 + segments
    sums = partial * _round_up(gradient.shape[-1], 32) * _FLOAT
    return [count * _INDEX] * 3 + [segments * _INDEX] * 2 + [partial * _INDEX, sums]


def _foreach_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    tensors = args[0]
    chunks = max((math.ceil(tensor.numel() / 65536) for tensor in tensors), default=0)
    return [len(tensors) * chunks * _FLOAT]
