"""Chooses the attention kernel that PyTorch takes on a CUDA device, and calls its operator.

Sources: `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` (`select_sdp_backend` and the `can_use_..._attention`
functions) and `aten/src/ATen/native/transformers/attention.cpp` (`scaled_dot_product_attention`), read for 2.10 and
compared with notes on 2.13 and 2.14. Kernels that the program has switched off (`sdpa_kernel`,
`torch.backends.cuda.enable_flash_sdp`) are left out. Nested tensors, ROCm and deterministic mode are not modelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from memprof.devices.target import Target

Backend = Literal["cudnn", "flash", "efficient", "math"]
aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)


def choose_attention(
    target: Target,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    grouped: bool = False,
    allowed: Sequence[str] | None = None,
) -> Backend:
    """Return the first kernel in PyTorch's order that takes the inputs.

    Args:
        target: The device.
        query: The queries, [batch, heads, length, width]. Tensors without four dimensions go to `math`.
        key: The keys, [batch, key heads, key length, width].
        value: The values, [batch, key heads, key length, value width].
        mask: The mask, boolean or additive; None if there is none.
        dropout: The probability of dropout.
        causal: The argument `is_causal`.
        grouped: The argument `enable_gqa`, which allows fewer key heads than query heads.
        allowed: The kernels that may be taken; None for those that PyTorch's switches leave on.
    """
    if allowed is None:
        allowed = _switched_on()
    if any(tensor.dim() != 4 or 0 in tensor.shape for tensor in (query, key, value)):
        return "math"
    grouped = grouped and query.shape[1] != key.shape[1]
    if "cudnn" in allowed and target.prefers_cudnn_attention and _cudnn_takes(target, query, key, value, dropout):
        return "cudnn"
    if "flash" in allowed and _flash_takes(target, query, key, value, mask, dropout, causal):
        return "flash"
    if "efficient" in allowed and _efficient_takes(target, query, key, value, grouped):
        return "efficient"
    return "math"


def _switched_on() -> list[str]:
    switches = {
        "cudnn": torch._C._get_cudnn_sdp_enabled,
        "flash": torch._C._get_flash_sdp_enabled,
        "efficient": torch._C._get_mem_efficient_sdp_enabled,
    }
    return [name for name, switch in switches.items() if switch()]


def _cudnn_takes(target: Target, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Return whether cuDNN takes the inputs, as `can_use_cudnn_attention` decides for cuDNN 9.15 or newer."""
    widest = 256 if target.capability == (9, 0) else 128
    widths = query.shape[3], value.shape[3]
    if query.dtype not in _HALVES or target.capability < (8, 0):
        return False
    if max(widths) > widest or any(width % 8 for width in widths):
        return False
    return key.shape[2] != 1 and not (query.shape[2] == 1 and dropout)


def _flash_takes(
    target: Target, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool
) -> bool:
    """Return whether flash attention takes the inputs, as `can_use_flash_attention` decides."""
    width = query.shape[3]
    if mask is not None or query.dtype not in _HALVES or target.capability < (8, 0):
        return False
    if not width == key.shape[3] == value.shape[3] <= 256 or (causal and query.shape[2] != key.shape[2]):
        return False
    small_shared_memory = (8, 6) <= target.capability <= (8, 9) or target.capability >= (12, 0)
    too_wide = 192 < width <= 224 or (width > 224 and dropout > 0)
    return not (small_shared_memory and too_wide and _needs_grad(query, key, value))


def _efficient_takes(target: Target, query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    """Return what `can_use_mem_efficient_attention` does. Memory-efficient attention takes grouped heads since 2.14."""
    if query.dtype not in (torch.float16, torch.float32, *((torch.bfloat16,) if target.capability >= (8, 0) else ())):
        return False
    if query.shape[3] != key.shape[3] or (grouped and target.torch_version < (2, 14)):
        return False
    multiple = _gemm_alignment(target, query.dtype in _HALVES)
    return query.shape[3] % multiple == 0 and value.shape[3] % multiple == 0


def _gemm_alignment(target: Target, half: bool) -> int:
    """Return the number of entries of which a width must be a multiple (`minimum_gemm_alignment`)."""
    alignment = 4 if target.capability >= (8, 0) else 1
    tensor_cores = target.capability >= (8, 0) or (target.capability >= (7, 0) and half)
    return max(alignment, 128 // (16 if half else 32)) if tensor_cores else alignment


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class CudaAttention:
    """Replaces `aten::scaled_dot_product_attention` and calls the operator that PyTorch would call on CUDA.

    Args:
        target: The device and its PyTorch version.
    """

    def __init__(self, target: Target) -> None:
        self._target = target

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        """Return the output of attention, with the arguments of `torch.nn.functional.scaled_dot_product_attention`."""
        backend = choose_attention(self._target, query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
        mask = _additive(attn_mask, query.dtype)
        saves = _needs_grad(query, key, value)
        if backend == "cudnn":
            return aten._scaled_dot_product_cudnn_attention(
                query, key, value, mask, saves, dropout_p, is_causal, False, scale=scale
            )[0]
        if backend == "flash":
            return self._flash(query, key, value, dropout_p, is_causal, scale)
        if backend == "efficient":
            mask = None if mask is None else _aligned(mask, query, key)
            return aten._scaled_dot_product_efficient_attention(
                query, key, value, mask, saves, dropout_p, is_causal, scale=scale
            )[0]
        return self._math(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa)

    def _flash(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, causal: bool, scale: float | None
    ) -> Tensor:
        width = query.shape[3]
        query, key, value = (_padded(tensor, 8) for tensor in (query, key, value))
        output: Tensor = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout, causal, False, scale=scale if scale is not None else width**-0.5
        )[0]
        return output if output.shape[3] == width else output[..., :width]

    def _math(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        causal: bool,
        scale: float | None,
        grouped: bool,
    ) -> Tensor:
        """Run the `math` kernel. Halves become float32: `allow_fp16_bf16_reduction_math_sdp` is off by default."""
        dtype = query.dtype
        if dtype in _HALVES:
            query, key, value = query.float(), key.float(), value.float()
            mask = None if mask is None else mask.float()
        output: Tensor = aten._scaled_dot_product_attention_math(
            query, key, value, mask, dropout, causal, None, scale=scale, enable_gqa=grouped
        )[0]
        return output.to(dtype)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a boolean mask into one that is added (`convert_boolean_attn_mask`)."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(float("-inf"), dtype=dtype))


def _aligned(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Pad the rows of the mask to a multiple of 8 entries, and expand it to all four dimensions (`preprocess_mask`)."""
    strides = [stride for size, stride in zip(mask.shape[:-1], mask.stride()[:-1], strict=True) if size > 1]
    if mask.shape[-1] % 8 or any(stride % 8 for stride in strides):
        mask = F.pad(mask, (0, -mask.shape[-1] % 8))[..., : mask.shape[-1]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _padded(tensor: Tensor, multiple: int) -> Tensor:
    """Pad the last dimension to a multiple (`pad_last_dim`)."""
    return F.pad(tensor, (0, -tensor.shape[-1] % multiple)) if tensor.shape[-1] % multiple else tensor
