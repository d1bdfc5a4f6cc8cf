"""Joins the maxima of all ranks: one all-reduce (MAX) per device mesh and step, for all parameters at once.

A maximum is exact in any order, so the result is the same as in a single process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class PartialMaxima:
    """Maxima over this rank's part of some sets, which wait for the other ranks.

    Args:
        values: the maxima, float32. The exchange replaces them by the maxima over all ranks.
        most: the number of maxima on the rank with the largest part.
        mesh: the device mesh.
        over: the mesh dimensions along which ranks hold other parts of the same sets.
        along: the mesh dimensions along which ranks hold other sets.
    """

    values: Tensor
    most: int
    mesh: DeviceMesh
    over: tuple[int, ...]
    along: tuple[int, ...]

    def slots(self) -> tuple[int, int, int]:
        """Return where this rank's maxima lie among those of all ranks.

        Returns:
            The number of parts into which the mesh dimensions `along` cut the sets, the index of this rank's part, and
            the length of the longest part.
        """
        at, count = 0, 1
        for dim in self.along:
            at = at * self.mesh.size(dim) + self.mesh.get_local_rank(dim)
            count *= self.mesh.size(dim)
        return count, at, self.most


def exchange(waiting: Sequence[PartialMaxima]) -> None:
    """Join all maxima over the ranks, with one all-reduce for each mesh.

    If the maxima of a mesh are joined over a single mesh dimension, the all-reduce runs in that dimension's group. They
    may be joined over several mesh dimensions: a matrix that is sharded by rows along one and by columns along another
    needs its row maxima joined along the second and its column maxima along the first. Then the all-reduce runs over
    the whole mesh. A rank leaves zeros, which are below every maximum, in place of the sets of which it has no part.

    Memory: a copy of the accumulators that are exchanged. In the second case the copy is not sharded.

    Args:
        waiting: the maxima to join. Their `values` are overwritten.
    """
    meshes: dict[DeviceMesh, list[PartialMaxima]] = {}
    for one in waiting:
        meshes.setdefault(one.mesh, []).append(one)
    for mesh, parts in meshes.items():
        dims = sorted({dim for part in parts for dim in part.over})
        if len(dims) == 1:
            _reduce(parts, mesh.get_group(dims[0]), [(1, 0, part.values.numel()) for part in parts])
        else:
            _reduce(parts, _group(mesh), [part.slots() for part in parts])


def _reduce(parts: list[PartialMaxima], group: ProcessGroup | None, slots: list[tuple[int, int, int]]) -> None:
    flat = torch.zeros(sum(count * length for count, _, length in slots), device=parts[0].values.device)
    tables = [part.view(slot[0], slot[2]) for part, slot in zip(flat.split(_sizes(slots)), slots, strict=True)]
    own = [table[at][: p.values.numel()] for table, p, (_, at, _) in zip(tables, parts, slots, strict=True)]
    for part, place in zip(parts, own, strict=True):
        place.copy_(part.values.reshape(-1))
    torch.distributed.all_reduce(flat, torch.distributed.ReduceOp.MAX, group)
    for part, place in zip(parts, own, strict=True):
        part.values.copy_(place.view(part.values.shape))


def _sizes(slots: list[tuple[int, int, int]]) -> list[int]:
    return [count * length for count, _, length in slots]


def _group(mesh: DeviceMesh) -> ProcessGroup | None:
    """Return the group of all ranks of a mesh. A mesh that is only a part of the world gets its own group, once."""
    world = torch.distributed.group.WORLD
    return world if mesh.size() == torch.distributed.get_world_size() else _new_group(mesh, world)


@cache
def _new_group(mesh: DeviceMesh, world: ProcessGroup | None) -> ProcessGroup:
    """Create the group of a mesh.

    The argument `world` is there for the cache: it differs after a restart of the process groups.
    """
    group: ProcessGroup = torch.distributed.new_group(mesh.mesh.flatten().tolist(), use_local_synchronization=True)
    return group
