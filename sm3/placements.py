"""Where a rank's part of a DTensor lies, for plain and for strided shards.

FSDP2 uses `_StridedShard` where tensor parallelism cuts the same dimension. That class is private to PyTorch, so this
module recognizes it only by its `split_factor`. This was tested on torch 2.8, 2.13 and 2.15.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .covers import Grid

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement


def shard_dim(placement: Placement) -> int | None:
    """Return the dimension that a placement shards, or None if it replicates.

    Args:
        placement: the placement of a DTensor on one mesh dimension.

    Raises:
        ValueError: the placement does neither.
    """
    if placement.is_replicate():
        return None
    dim = getattr(placement, "dim", None)
    if dim is None:
        raise ValueError(f"SM3 takes sharded and replicated parameters, not a DTensor placed as {placement}")
    return int(dim)


def over(param: DTensor, grid: Grid) -> list[bool]:
    """Return, for each mesh dimension, whether ranks along it hold other parts of the sets of a grid.

    Args:
        param: the parameter.
        grid: the block length along each dimension, where 0 stands for the whole dimension.
    """
    dims = [shard_dim(placement) for placement in param.placements]
    return [dim is not None and grid[dim] != 1 for dim in dims]


def start(param: DTensor, dim: int) -> int:
    """Return the index at which this rank's part of a dimension begins.

    Args:
        param: the parameter.
        dim: the dimension of the parameter.

    Raises:
        ValueError: the part is not a single range.
    """
    begin, size = 0, param.shape[dim]
    for mesh_dim in _order(param, dim):
        length = -(-size // param.device_mesh.size(mesh_dim))
        before = min(length * param.device_mesh.get_local_rank(mesh_dim), size)
        begin, size = begin + before, min(length, size - before)
    if size != param.to_local().shape[dim]:
        raise _no_range(param)
    return begin


def _order(param: DTensor, dim: int) -> list[int]:
    """Return the mesh dimensions that cut a tensor dimension. Each one cuts what the one before it left.

    They apply from left to right. A strided placement is the exception: its split factor is the number of ranks on the
    mesh dimensions to its right that are applied before it.
    """
    order: list[int] = []
    for mesh_dim, placement in reversed(list(enumerate(param.placements))):
        if shard_dim(placement) == dim:
            order.insert(_earlier(param, order, getattr(placement, "split_factor", 1)), mesh_dim)
    return order


def _earlier(param: DTensor, order: list[int], split_factor: int) -> int:
    for count in range(len(order) + 1):
        if math.prod(param.device_mesh.size(mesh_dim) for mesh_dim in order[:count]) == split_factor:
            return count
    raise _no_range(param)


def _no_range(param: DTensor) -> ValueError:
    return ValueError(
        f"a cover by blocks or index sets, or int8 momentum whose blocks cross ranks, needs parts that are single "
        f"ranges, not a parameter of shape {tuple(param.shape)} placed as {param.placements}: give it a group with "
        "cover='slices' and momentum_dtype='bfloat16'"
    )


def largest_part(tensor: DTensor) -> int:
    """Return the number of entries on the rank that has the most.

    Args:
        tensor: a DTensor.
    """
    sizes = list(tensor.shape)
    for mesh_dim, placement in enumerate(tensor.placements):
        dim = shard_dim(placement)
        if dim is not None:
            sizes[dim] = -(-sizes[dim] // tensor.device_mesh.size(mesh_dim))
    return math.prod(sizes)


def moved(placement: Placement, dim: int) -> Placement:
    """Return a placement of the same kind that shards another dimension.

    Args:
        placement: a plain or strided shard.
        dim: the dimension that the result shards.
    """
    from torch.distributed.tensor import Shard

    if type(placement) is Shard:
        return Shard(dim)
    return type(placement)(dim, split_factor=placement.split_factor)  # type: ignore[call-arg, attr-defined]


def of_accumulator(placement: Placement, grid: Grid) -> Placement:
    """Return the placement of an accumulator on one mesh dimension.

    Args:
        placement: the placement of the parameter on that mesh dimension.
        grid: the block length along each dimension, where 0 stands for the whole dimension.

    Returns:
        A shard if the parameter is sharded along a dimension that the grid cuts into single entries, otherwise
        `Replicate()`.
    """
    from torch.distributed.tensor import Replicate

    dim = shard_dim(placement)
    if dim is None or grid[dim] != 1:
        return Replicate()
    return moved(placement, dim if sum(block > 0 for block in grid) > 1 else 0)


def zeros(param: DTensor, local: Sequence[int], whole: Sequence[int], placements: Sequence[Placement]) -> DTensor:
    """Return a float32 DTensor of zeros on a parameter's mesh.

    Args:
        param: the parameter.
        local: the shape of this rank's part.
        whole: the shape of the whole tensor.
        placements: the placement on each mesh dimension.
    """
    from torch.distributed.tensor import DTensor

    values, shape = torch.zeros(tuple(local), device=param.device, dtype=torch.float32), torch.Size(whole)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(values, param.device_mesh, placements, run_check=False, shape=shape, stride=stride)
