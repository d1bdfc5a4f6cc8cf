"""SM3 on DTensor parameters: FSDP2's `fully_shard`, tensor parallelism, and meshes of both.

An accumulator along a sharded dimension is sharded with it, so each rank keeps the rows it owns. Every other one is
replicated: ranks take the maximum over their own parts, and one all-reduce (MAX) per process group and step, over all
parameters at once, makes it whole. A maximum is exact in any order, hence the result is that of a single process.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .covers import Cover, Grid, GridCover, grid_shape, stored_shape
from .kernels.accumulators import Accumulator, GridAccumulator
from .kernels.momentum import FloatMomentum
from .kernels.task import Options, Task

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor, Placement


def is_dtensor(tensor: Tensor) -> bool:
    """Say whether a tensor is a DTensor, without importing what a single process never needs."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _grids(cover: Cover, group: dict[str, Any], param: Tensor) -> list[Grid]:
    grids = cover.grids(param.shape) if isinstance(cover, GridCover) else []
    if not grids or any(block > 1 for grid in grids for block in grid):
        raise ValueError(f"cover {cover.name} does not work on DTensor parameters: use slices, singleton or whole")
    if group["momentum"] and group["momentum_dtype"] == "int8":
        raise ValueError("int8 momentum does not work on DTensor parameters: use bfloat16")
    return grids


class ShardedTask:
    """This rank's part of one parameter's step, and which of its accumulators wait for other ranks.

    Args:
        state: the parameter's state; accumulators are created in it as DTensors.
        group: its parameter group.
        param: the parameter.
        cover: its cover; each dimension cut into single entries or not at all.

    Raises:
        ValueError: a cover by blocks or index sets, int8 momentum, or a sparse gradient.
    """

    def __init__(self, state: dict[str, Any], group: dict[str, Any], param: DTensor, cover: Cover) -> None:
        grids = _grids(cover, group, param)
        local = param.to_local()
        accumulators: list[Accumulator] = []
        self.groups: list[list[ProcessGroup]] = []
        for number, grid in enumerate(grids):
            kept = _accumulator(state, f"accumulator_{number}", param, grid)
            accumulators.append(GridAccumulator(kept.to_local().view(grid_shape(local.shape, grid)), grid))
            self.groups.append(_groups(param, grid))
            accumulators[-1].exchanged = bool(self.groups[-1])
        task = Task(local, _gradient(param), accumulators, _momentum(state, group, param), Options.of(group))
        self.task = task.in_memory_order()

    def waiting(self) -> list[tuple[ProcessGroup, Tensor]]:
        """Return each tensor of maxima that is not whole yet, with a group over which to make it so."""
        pairs = zip(self.task.accumulators, self.groups, strict=True)
        return [(group, a.old if a.new is None else a.new) for a, groups in pairs for group in groups]


def exchange(tasks: list[ShardedTask]) -> None:
    """Make the maxima of all parameters whole: one all-reduce for each process group.

    Memory: a second copy of the accumulators that are exchanged.
    """
    waiting: dict[ProcessGroup, list[Tensor]] = {}
    for task in tasks:
        for group, tensor in task.waiting():
            waiting.setdefault(group, []).append(tensor)
    for group, tensors in waiting.items():
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat, torch.distributed.ReduceOp.MAX, group)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def _shard_dim(placement: Placement) -> int | None:
    if placement.is_replicate():
        return None
    dim = getattr(placement, "dim", None)
    if dim is None:
        raise ValueError(f"SM3 takes sharded and replicated parameters, not a DTensor placed as {placement}")
    return int(dim)


def _accumulator(state: dict[str, Any], key: str, param: DTensor, grid: Grid) -> DTensor:
    if key not in state:
        state[key] = _zeros(param, grid)
    kept: DTensor = state[key]
    return kept


def _zeros(param: DTensor, grid: Grid) -> DTensor:
    from torch.distributed.tensor import DTensor

    local = torch.zeros(stored_shape(param.to_local().shape, grid), device=param.device)
    shape = torch.Size(stored_shape(param.shape, grid))
    placements = [_placement(placement, grid) for placement in param.placements]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, param.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def _placement(placement: Placement, grid: Grid) -> Placement:
    """Return how an accumulator lies on one mesh dimension: sharded along what it is cut along, or whole."""
    from torch.distributed.tensor import Replicate, Shard

    dim = _shard_dim(placement)
    if dim is None or not grid[dim]:
        return Replicate()
    kept = dim if sum(block > 0 for block in grid) > 1 else 0
    if type(placement) is Shard:
        return Shard(kept)
    return type(placement)(kept, split_factor=placement.split_factor)  # type: ignore[call-arg, attr-defined]


def _groups(param: DTensor, grid: Grid) -> list[ProcessGroup]:
    """Return the groups that hold other parts of the sets of a grid."""
    dims = [_shard_dim(placement) for placement in param.placements]
    mesh = param.device_mesh
    return [mesh.get_group(m) for m, dim in enumerate(dims) if dim is not None and not grid[dim]]


def _gradient(param: DTensor) -> Tensor:
    grad: Any = param.grad
    if not is_dtensor(grad):
        raise ValueError("a DTensor parameter needs a dense DTensor gradient")
    if grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    local: Tensor = grad.to_local()
    return local


def _momentum(state: dict[str, Any], group: dict[str, Any], param: DTensor) -> FloatMomentum | None:
    if not group["momentum"]:
        return None
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(param, dtype=getattr(torch, group["momentum_dtype"]))
    return FloatMomentum(state["momentum_buffer"].to_local())
