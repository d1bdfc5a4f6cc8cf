"""A cover by any collection of index sets. The sets may overlap."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .covers import Cover

Box = tuple[tuple[int, int], ...]


class IndexSets(Cover):
    """Any collection of index sets of one shape. The sets may overlap. The state is one number per set.

    Each membership of an index in a set is kept as two int64 numbers, beside the optimizer's state, and a step makes a
    second copy of the accumulators. The cover is meant for studies and for small parameters with an unusual structure.

    Args:
        sets: the sets. Each is a 1-D tensor or sequence of flat (row-major) indices, or a boolean mask of the shape.
        shape: the shape of the parameter.

    Raises:
        ValueError: an index is out of range, a set is empty, or an index is in no set.
    """

    def __init__(self, sets: Sequence[Tensor | Sequence[int]], shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.sets = [_flat_indices(members, self.shape) for members in sets]
        numel = math.prod(self.shape)
        if any(len(members) == 0 or members[0] < 0 or members[-1] >= numel for members in self.sets):
            raise ValueError(f"each set of a cover of shape {self.shape} holds indices from 0 to {numel - 1}")
        held = torch.zeros(numel, dtype=torch.bool)
        for members in self.sets:
            held[members] = True
        if not held.all():
            missing = int((~held).nonzero()[0])
            raise ValueError(f"index {missing} is in no set of the cover: every index must be in at least one")
        index = torch.cat([*self.sets, torch.zeros(0, dtype=torch.int64)])
        number = torch.repeat_interleave(torch.tensor([len(members) for members in self.sets], dtype=torch.int64))
        order = torch.argsort(index, stable=True)
        self._memberships = (index[order], number[order])
        self._placed: dict[tuple[torch.device, Box | None], tuple[Tensor, Tensor]] = {}

    @property
    def name(self) -> str:
        """The name, for example `index-sets(7 of 4x6, 1a2b3c4d)`. The last word is a checksum of the memberships."""
        size = "x".join(map(str, self.shape))
        checksum = zlib.crc32(torch.stack(self._memberships).cpu().numpy().tobytes())
        return f"index-sets({len(self.sets)} of {size}, {checksum:08x})"

    def state_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the one shape `(number of sets,)`.

        Args:
            shape: the shape of the parameter.

        Raises:
            ValueError: the parameter's shape is not the shape of the cover.
        """
        if tuple(shape) != self.shape:
            raise ValueError(f"the index sets cover shape {self.shape}, but the parameter has {tuple(shape)}")
        return [(len(self.sets),)]

    def index_sets(self, shape: Sequence[int]) -> list[Tensor]:
        """Return the sets.

        Args:
            shape: the shape of the parameter, which does not change the answer.
        """
        return list(self.sets)

    def memberships(self, device: torch.device, box: Box | None = None) -> tuple[Tensor, Tensor]:
        """Return the memberships on a device, ordered by index.

        Args:
            device: the device of the result.
            box: the start and length of a part of the parameter along each dimension, or None for the whole. With a
                box, only the memberships of the indices in that part are returned, and the indices count from its first
                entry.

        Returns:
            Two int64 tensors with one entry per membership: the flat index, ascending, and the number of the set.
        """
        key = (device, box)
        if key not in self._placed:
            index, number = self._memberships if box is None else self._inside(box)
            self._placed[key] = (index.to(device), number.to(device))
        return self._placed[key]

    def _inside(self, box: Box) -> tuple[Tensor, Tensor]:
        index, number = self._memberships
        inside, local, left = torch.ones_like(index, dtype=torch.bool), torch.zeros_like(index), index
        stride = 1
        for size, (start, length) in zip(reversed(self.shape), reversed(box), strict=True):
            place = left % size - start
            inside &= (place >= 0) & (place < length)
            local += place * stride
            left, stride = left // size, stride * length
        return local[inside], number[inside]


def _flat_indices(members: Tensor | Sequence[int], shape: tuple[int, ...]) -> Tensor:
    indices = torch.as_tensor(members)
    if indices.dtype == torch.bool:
        if indices.shape != shape:
            raise ValueError(f"a mask of shape {tuple(indices.shape)} is not a set of a cover of shape {shape}")
        return indices.flatten().nonzero().flatten()
    flat: Tensor = torch.unique(indices.to(torch.int64))
    return flat
