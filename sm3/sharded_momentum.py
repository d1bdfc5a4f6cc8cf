"""The momentum of a DTensor parameter, and how the scales of its int8 form are placed on the ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from .kernels.momentum import INT8_BLOCK, FloatMomentum, Int8Momentum, Momentum, first_inner, scale_shape
from .kernels.shared_momentum import SharedInt8Momentum
from .option_checks import momentum_dtype
from .placements import shard_dim, start, zeros
from .state import check_momentum

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement


def momentum(state: dict[str, Any], group: dict[str, Any], param: DTensor) -> Momentum | None:
    """Return this rank's part of a parameter's momentum.

    Args:
        state: the parameter's state. Buffers are created in it, filled with zeros, if they are missing.
        group: the parameter group.
        param: the parameter.

    Returns:
        The momentum, or None if the group has none.

    Raises:
        ValueError: the momentum is int8, its blocks cross ranks, and a rank's part is not a single range.
    """
    if not group["momentum"]:
        return None
    dtype = momentum_dtype(group)
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(param, dtype=dtype)
    check_momentum(state["momentum_buffer"], dtype)
    buffer = state["momentum_buffer"].to_local()
    if dtype != torch.int8:
        return FloatMomentum(buffer)
    shared, inner = crossing(param), first_inner(param.shape)
    if "momentum_scale" not in state:
        local = [(param if shared and dim >= inner else buffer).shape[dim] for dim in range(param.dim())]
        state["momentum_scale"] = zeros(param, scale_shape(local, inner), scale_shape(param.shape), _placements(param))
    scale = state["momentum_scale"].to_local()
    if not shared:
        return Int8Momentum(buffer, scale, inner)
    return SharedInt8Momentum(buffer, scale, param.shape, [start(param, dim) for dim in range(param.dim())])


def crossing(param: DTensor) -> tuple[int, ...]:
    """Return the mesh dimensions along which ranks share blocks of 256 entries.

    Args:
        param: the parameter.

    Returns:
        The mesh dimensions. There are none if every cut is at a multiple of 256 entries.
    """
    from torch.distributed.tensor import Shard

    inner, dims = first_inner(param.shape), [shard_dim(placement) for placement in param.placements]
    cut = [mesh_dim for mesh_dim, dim in enumerate(dims) if dim is not None and dim >= inner]
    if len(cut) == 1 and dims[cut[0]] == inner and type(param.placements[cut[0]]) is Shard:
        length = -(-param.shape[inner] // param.device_mesh.size(cut[0]))
        if length * math.prod(param.shape[inner + 1 :]) % INT8_BLOCK == 0:
            return ()
    return tuple(cut)


def _placements(param: DTensor) -> list[Placement]:
    """Return the placements of the scales: those of the parameter, but replicated where ranks share blocks."""
    from torch.distributed.tensor import Replicate

    shared = crossing(param)
    return [Replicate() if mesh_dim in shared else placed for mesh_dim, placed in enumerate(param.placements)]
