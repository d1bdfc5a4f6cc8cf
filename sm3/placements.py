"""Where a rank's part of a DTensor lies, for plain and strided shards.

`_StridedShard`, which FSDP2 uses where tensor parallelism cuts the same dimension, is private to PyTorch: it is told by
its `split_factor` alone. Tested on torch 2.8, 2.13 and 2.15.
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
    """Return the dimension that a placement shards, None where it replicates.

    Raises:
        ValueError: it does neither.
    """
    if placement.is_replicate():
        return None
    dim = getattr(placement, "dim", None)
    if dim is None:
        raise ValueError(f"SM3 takes sharded and replicated parameters, not a DTensor placed as {placement}")
    return int(dim)


def over(param: DTensor, grid: Grid) -> list[bool]:
    """Say, for each mesh dimension, whether ranks along it hold other parts of the sets of a grid."""
    dims = [shard_dim(placement) for placement in param.placements]
    return [dim is not None and grid[dim] != 1 for dim in dims]


def start(param: DTensor, dim: int) -> int:
    """Return where this rank's part of a dimension begins.

    Raises:
        ValueError: the part is no single range.
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
    """Return the mesh dimensions that cut a dimension, each cutting what the one before it left.

    They come from left to right, but a strided one after as many of those to its right as its split factor tells.
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
    """Return the entries of the rank that has most."""
    sizes = list(tensor.shape)
    for mesh_dim, placement in enumerate(tensor.placements):
        dim = shard_dim(placement)
        if dim is not None:
            sizes[dim] = -(-sizes[dim] // tensor.device_mesh.size(mesh_dim))
    return math.prod(sizes)


def moved(placement: Placement, dim: int) -> Placement:
    """Return the same shard of another tensor's dimension."""
    from torch.distributed.tensor import Shard

    if type(placement) is Shard:
        return Shard(dim)
    return type(placement)(dim, split_factor=placement.split_factor)  # type: ignore[call-arg, attr-defined]


def of_accumulator(placement: Placement, grid: Grid) -> Placement:
    """Return how an accumulator lies on one mesh dimension: sharded where it is cut into single entries, or whole."""
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
        whole: that of the whole.
        placements: how it lies on each mesh dimension.
    """
    from torch.distributed.tensor import DTensor

    values, shape = torch.zeros(tuple(local), device=param.device, dtype=torch.float32), torch.Size(whole)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(values, param.device_mesh, placements, run_check=False, shape=shape, stride=stride)
