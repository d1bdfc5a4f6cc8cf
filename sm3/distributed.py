"""SM3 on DTensor parameters: FSDP2's `fully_shard`, tensor parallelism, and meshes of both.

Accumulators of single rows (or columns) of a dimension that is sharded are sharded with it, so each rank keeps those it
owns. Every other accumulator is replicated: ranks take maxima over their own parts, and one collective per step joins
them (`exchange.py`).
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .covers import Cover, Grid, GridCover, grid_shape, stored_shape
from .exchange import Waiting
from .index_sets import IndexSets
from .kernels.accumulators import Accumulator, GridAccumulator, IndexSetAccumulator
from .kernels.momentum import INT8_BLOCK, FloatMomentum, Int8Momentum, Momentum, first_inner, scale_shape
from .kernels.task import Options, Task

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement


def is_dtensor(tensor: Tensor) -> bool:
    """Say whether a tensor is a DTensor, without importing what a single process never needs."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


class ShardedTask:
    """This rank's part of one parameter's step, and which of its accumulators wait for other ranks.

    Args:
        state: the parameter's state; accumulators are created in it as DTensors.
        group: its parameter group.
        param: the parameter.
        cover: its cover.

    Raises:
        ValueError: a gradient that is no DTensor (PyTorch 2.13 has no sparse ones); int8 momentum of a
            parameter whose blocks of 256 entries cross ranks; a cover by blocks or index sets on a dimension that is
            sharded in a strided way (tensor parallelism and FSDP along the same one), where a rank has no single range.
    """

    def __init__(self, state: dict[str, Any], group: dict[str, Any], param: DTensor, cover: Cover) -> None:
        self._state, self._param, self._kept = state, param, list[tuple["DTensor", Grid]]()
        local = param.to_local()
        accumulators = self._index_sets(cover) if isinstance(cover, IndexSets) else self._grids(cover)
        for accumulator, (_, grid) in zip(accumulators, self._kept, strict=True):
            accumulator.exchanged = any(_over(param, grid))
        task = Task(local, _gradient(param), accumulators, _momentum(state, group, param), Options.of(group))
        self.task = task.flattened() if isinstance(cover, IndexSets) else task.in_memory_order()

    def _grids(self, cover: Cover) -> list[Accumulator]:
        assert isinstance(cover, GridCover)
        param, local, found = self._param, self._param.to_local(), list[Accumulator]()
        for number, grid in enumerate(cover.grids(param.shape)):
            cut = [dim for dim, block in enumerate(grid) if block > 1]
            starts = [_start(param, dim) if dim in cut else 0 for dim in range(param.dim())]
            sizes = [param.shape[dim] if dim in cut else local.shape[dim] for dim in range(param.dim())]
            kept = self._accumulator(number, sizes, grid)
            found.append(GridAccumulator(kept.to_local().view(grid_shape(sizes, grid)), grid, starts))
        return found

    def _index_sets(self, cover: IndexSets) -> list[Accumulator]:
        param, local = self._param, self._param.to_local()
        (count,) = cover.state_shapes(param.shape)[0]
        kept = self._accumulator(0, (count,), (0,) * param.dim(), (count,))
        box = tuple((_start(param, dim), local.shape[dim]) for dim in range(param.dim()))
        return [IndexSetAccumulator(kept.to_local(), *cover.memberships(param.device, box))]

    def _accumulator(self, number: int, sizes: Any, grid: Grid, stored: tuple[int, ...] | None = None) -> DTensor:
        """Return one accumulator tensor, zero if this is the first step; `sizes` are the dimensions it is cut from."""
        key = f"accumulator_{number}"
        if key not in self._state:
            whole, part = stored or stored_shape(self._param.shape, grid), stored or stored_shape(sizes, grid)
            placements = [_placement(placement, grid) for placement in self._param.placements]
            self._state[key] = _zeros(self._param, part, whole, placements, torch.float32)
        kept: DTensor = self._state[key]
        self._kept.append((kept, grid))
        return kept

    def waiting(self) -> list[Waiting]:
        """Return each tensor of maxima that is not whole yet."""
        found = []
        for accumulator, (kept, grid) in zip(self.task.accumulators, self._kept, strict=True):
            over = tuple(dim for dim, joins in enumerate(_over(self._param, grid)) if joins)
            along = tuple(dim for dim, placement in enumerate(kept.placements) if not placement.is_replicate())
            if over:
                values = accumulator.old if accumulator.new is None else accumulator.new
                found.append(Waiting(values, _largest_part(kept), kept.device_mesh, over, along))
        return found


def _largest_part(tensor: DTensor) -> int:
    """Return the entries of the rank that has most."""
    sizes = list(tensor.shape)
    for mesh_dim, placement in enumerate(tensor.placements):
        dim = _shard_dim(placement)
        if dim is not None:
            sizes[dim] = -(-sizes[dim] // tensor.device_mesh.size(mesh_dim))
    return math.prod(sizes)


def _shard_dim(placement: Placement) -> int | None:
    if placement.is_replicate():
        return None
    dim = getattr(placement, "dim", None)
    if dim is None:
        raise ValueError(f"SM3 takes sharded and replicated parameters, not a DTensor placed as {placement}")
    return int(dim)


def _over(param: DTensor, grid: Grid) -> list[bool]:
    """Say, for each mesh dimension, whether ranks along it hold other parts of the sets of a grid."""
    dims = [_shard_dim(placement) for placement in param.placements]
    return [dim is not None and grid[dim] != 1 for dim in dims]


def _start(param: DTensor, dim: int) -> int:
    """Return where this rank's part of a dimension begins; each mesh dimension cuts what the one before left."""
    from torch.distributed.tensor import Shard

    start, size = 0, param.shape[dim]
    for mesh_dim, placement in enumerate(param.placements):
        if _shard_dim(placement) != dim:
            continue
        if type(placement) is not Shard:
            raise ValueError(f"a cover by blocks or index sets does not work on a parameter placed as {placement}")
        length = -(-size // param.device_mesh.size(mesh_dim))
        before = min(length * param.device_mesh.get_local_rank(mesh_dim), size)
        start, size = start + before, min(length, size - before)
    return start


def _zeros(param: DTensor, local: Any, whole: Any, placements: list[Placement], dtype: torch.dtype) -> DTensor:
    from torch.distributed.tensor import DTensor

    values, shape = torch.zeros(local, device=param.device, dtype=dtype), torch.Size(whole)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(values, param.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def _placement(placement: Placement, grid: Grid) -> Placement:
    """Return how an accumulator lies on one mesh dimension: sharded where it is cut into single entries, or whole."""
    from torch.distributed.tensor import Replicate, Shard

    dim = _shard_dim(placement)
    if dim is None or grid[dim] != 1:
        return Replicate()
    kept = dim if sum(block > 0 for block in grid) > 1 else 0
    if type(placement) is Shard:
        return Shard(kept)
    return type(placement)(kept, split_factor=placement.split_factor)  # type: ignore[call-arg, attr-defined]


def _gradient(param: DTensor) -> Tensor:
    grad: Any = param.grad
    if not is_dtensor(grad):
        raise ValueError("a DTensor parameter needs a dense DTensor gradient")
    if grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    local: Tensor = grad.to_local()
    return local


def _momentum(state: dict[str, Any], group: dict[str, Any], param: DTensor) -> Momentum | None:
    if not group["momentum"]:
        return None
    dtype = getattr(torch, group["momentum_dtype"])
    if dtype == torch.int8:
        _check_blocks(param)
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(param, dtype=dtype)
    buffer = state["momentum_buffer"].to_local()
    if dtype != torch.int8:
        return FloatMomentum(buffer)
    if "momentum_scale" not in state:
        local, whole = scale_shape(buffer.shape), scale_shape(param.shape)
        state["momentum_scale"] = _zeros(param, local, whole, list(param.placements), torch.float32)
    return Int8Momentum(buffer, state["momentum_scale"].to_local())


def _check_blocks(param: DTensor) -> None:
    inner = first_inner(param.shape)
    if any(dim is not None and dim >= inner for dim in map(_shard_dim, param.placements)):
        raise ValueError(
            f"int8 momentum shares a scale among {INT8_BLOCK} entries, which here lie on several ranks: give "
            f"parameters such as this one, of shape {tuple(param.shape)} placed as {param.placements}, a group with "
            "momentum_dtype='bfloat16'"
        )
