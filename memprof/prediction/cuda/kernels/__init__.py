"""Memory that CUDA kernels take for themselves, which no meta kernel shows.

| what | bytes | source |
|---|---|---|
| cuBLAS | 8,519,680; 32 MiB from compute capability 9.0 on. Up to 2.14 each thread that multiplies matrices (the main
  one and the backward pass's) keeps it. From 2.15 on each product takes it and gives it back | `CublasHandlePool.cpp`,
  `parseChosenWorkspaceSize`; `CUBLAS_WORKSPACE_CONFIG` is honoured |
| cuBLASLt | 1 MiB for each linear layer with a bias | `CublasHandlePool.cpp`, `CUDABlas.cpp`, `gemm_and_bias` |
| copies for cuBLAS | the size of each matrix without a dense dimension, such as an expanded gradient | `Blas.cpp` |
| attention | `attention` | |
| sums | `reductions` | |
| layer norm, RMS norm | `norms` | |
| FSDP's copies | `fsdp` | |
| other kernels | `pointwise` | |

The workspaces that cuDNN takes for convolutions depend on its own heuristics and are only known within limits
(`convolution`).

Everything else, except attention through cuDNN, is compared with the recorded allocations of PyTorch's own CUDA code in
2.6 and 2.15 (`tests/data/allocator/operators.json`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memprof.devices.target import Target
from memprof.prediction.cuda.kernels.attention import attention_scratch
from memprof.prediction.cuda.kernels.convolution import convolution_scratch
from memprof.prediction.cuda.kernels.fsdp import sharding_scratch
from memprof.prediction.cuda.kernels.norms import norm_scratch
from memprof.prediction.cuda.kernels.pointwise import KERNELS
from memprof.prediction.cuda.kernels.reductions import part_bytes, reduction_buffers
from memprof.prediction.fake.event_log import Steps

Scratch = Callable[[tuple[Any, ...], dict[str, Any]], Steps]
aten = torch.ops.aten

_MIB = 2**20
_PRODUCTS = (
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default),
    *(aten.addmv.default, aten.dot.default, aten._addmm_activation.default),
)
# The bytes of a partial result; None if it has the type of the result.
_REDUCTIONS: Mapping[Any, int | None] = {
    aten.sum.default: None,
    aten.sum.dim_IntList: None,
    aten.mean.default: None,
    aten.mean.dim: None,
    aten.amax.default: None,
    aten.amin.default: None,
    aten.max.default: None,
    aten.min.default: None,
    aten.linalg_vector_norm.default: None,
    aten.var.correction: 16,
    aten.std.correction: 16,
    aten.var_mean.correction: 16,
    aten.std_mean.correction: 16,
}
_WITH_ORDER = (aten.linalg_vector_norm.default,)  # the dimensions are the third argument, behind the order


class Workspaces:
    """The memory that the operators of one training take on a CUDA device, beside their outputs.

    Args:
        target: The device and its PyTorch version.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._kept_by: set[bool] = set()  # threads that have a cuBLAS workspace: main, backward
        self._scratch: Mapping[Any, Scratch] = {
            **dict.fromkeys(_PRODUCTS, self._product),
            **{operator: partial(self._reduction, operator) for operator in _REDUCTIONS},
            **attention_scratch(target),
            **convolution_scratch(target),
            **norm_scratch(target),
            **sharding_scratch(target),
            **KERNELS,
        }

    def takes(self, func: Any) -> bool:
        """Return whether an operator may take memory for itself.

        Args:
            func: The operator's overload.
        """
        return func in self._scratch

    @property
    def doubts(self) -> list[str]:
        """No sentences, because uncertain sizes are part of the upper bound (`memprof.prediction.bounds`)."""
        return []

    def scratch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: int = 0) -> Steps:
        """Return the blocks that an operator takes and gives back, in order.

        Args:
            func: The operator's overload.
            args: Its arguments.
            kwargs: Its keyword arguments.
            made: The bytes of its outputs.
        """
        return self._scratch[func](args, kwargs)

    def kept(self, func: Any, backward: bool) -> int:
        """Return the bytes that cuBLAS allocates for an operator and keeps: the workspace of its thread, once.

        Args:
            func: The operator's overload.
            backward: Whether it runs in the thread of the backward pass.
        """
        persistent = self._target.torch_version < (2, 15) or os.environ.get("TORCH_CUBLAS_WORKSPACE_CACHE") == "1"
        if func not in _PRODUCTS or not persistent or backward in self._kept_by:
            return 0
        self._kept_by.add(backward)
        return self._target.cublas_workspace_bytes

    def forget_kept(self) -> None:
        """Forget the workspaces of all threads, which were freed (`torch._C._cuda_clearCublasWorkspaces`)."""
        self._kept_by.clear()

    def _product(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
        copies = [_bytes(tensor) for tensor in args[-2:] if not _is_blas_matrix(tensor)]
        if len(args) == 3 and args[0].dim() == 1 and args[1].dim() == 2 and min(args[2].shape) > 1:
            return [None, *copies, _MIB]
        version = self._target.torch_version
        if version >= (2, 15) and os.environ.get("TORCH_CUBLAS_WORKSPACE_CACHE") != "1":
            return [None, *copies, self._target.cublas_workspace_bytes]
        return [None, *copies]

    def _reduction(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
        tensor = args[0]
        place = 2 if func in _WITH_ORDER else 1
        dims = args[place] if len(args) > place and isinstance(args[place], (list, tuple)) else None
        cast = self._cast(func, tensor, kwargs.get("dtype"))
        part = _REDUCTIONS[func] or part_bytes(cast or tensor.dtype)
        copy = [tensor.numel() * cast.itemsize] if cast else []
        return [None, *copy, *reduction_buffers(self._target, tensor, dims, part)]

    def _cast(self, func: Any, tensor: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Return the type to which a sum first casts its input, or None. Halves become float32 within the kernel."""
        if func not in (aten.sum.default, aten.sum.dim_IntList):
            return None
        wanted = dtype or (tensor.dtype if tensor.is_floating_point() or tensor.is_complex() else torch.int64)
        within = tensor.dtype in (torch.float16, torch.bfloat16) and wanted is torch.float32
        return None if wanted is tensor.dtype or within else wanted


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_blas_matrix(tensor: Tensor) -> bool:
    """Return whether cuBLAS reads the last two dimensions without a copy (`prepare_matrix_for_cublas` in Blas.cpp)."""
    if tensor.dim() < 2:
        return True
    (rows, columns), (down, along) = tensor.shape[-2:], tensor.stride()[-2:]
    return bool((along == 1 and down >= max(1, columns)) or (down == 1 and along >= max(1, rows)))
