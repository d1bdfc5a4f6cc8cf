"""SM3 on DTensor parameters: FSDP2's `fully_shard`, tensor parallelism, and meshes that combine them.

If a sharded dimension has one accumulator per row (or column), these accumulators are sharded in the same way, so each
rank keeps the ones that it owns. Every other accumulator is replicated. For those, each rank takes the maxima over its
own part, and one collective per mesh and step joins the maxima (`exchange.py`). The same collective joins the scales of
int8 momentum blocks that cross ranks.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .covers import Cover, Grid, GridCover, grid_shape, stored_shape
from .exchange import PartialMaxima
from .index_sets import IndexSets
from .kernels.accumulators import Accumulator, GridAccumulator, IndexSetAccumulator
from .kernels.chunked import in_two_passes
from .kernels.shared_momentum import SharedInt8Momentum
from .kernels.task import Options, Task
from .placements import largest_part, of_accumulator, over, start, zeros
from .sharded_momentum import crossing, momentum
from .state import check_accumulator

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, without importing a module that a single process never needs.

    Args:
        tensor: any tensor.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


class ShardedTask:
    """This rank's part of one parameter's step, and the accumulators that wait for other ranks.

    Args:
        state: the parameter's state. Accumulators are created in it as DTensors.
        group: the parameter group.
        param: the parameter.
        cover: the parameter's cover.

    Raises:
        ValueError: the gradient is not a DTensor (PyTorch 2.13 has no sparse DTensors); or SM3-I is used with int8
            momentum whose blocks of 256 entries cross ranks; or a cover by blocks or index sets, or such momentum, is
            used where a rank's part is not a single range.
    """

    def __init__(self, state: dict[str, Any], group: dict[str, Any], param: DTensor, cover: Cover) -> None:
        self._state, self._param, self._kept = state, param, list[tuple["DTensor", Grid]]()
        local = param.to_local()
        accumulators = self._index_sets(cover) if isinstance(cover, IndexSets) else self._grids(cover)
        for accumulator, (_, grid) in zip(accumulators, self._kept, strict=True):
            accumulator.exchanged = any(over(param, grid))
        task = Task(local, _gradient(param), accumulators, momentum(state, group, param), Options.of(group))
        self.task = task.flattened() if isinstance(cover, IndexSets) else task.in_memory_order()
        if isinstance(self.task.momentum, SharedInt8Momentum):
            self._measure()

    def _measure(self) -> None:
        if in_two_passes(self.task):
            raise ValueError(
                "SM3-I cannot share the scales of int8 momentum among ranks, since they depend on nu, which waits for "
                f"other ranks itself: give parameters such as this one, of shape {tuple(self._param.shape)} placed as "
                f"{self._param.placements}, a group with variant='II' or momentum_dtype='bfloat16'"
            )
        self.task.measuring = True

    def _grids(self, cover: Cover) -> list[Accumulator]:
        assert isinstance(cover, GridCover)
        param, local, found = self._param, self._param.to_local(), list[Accumulator]()
        for number, grid in enumerate(cover.grids(param.shape)):
            cut = [dim for dim, block in enumerate(grid) if block > 1]
            starts = [start(param, dim) if dim in cut else 0 for dim in range(param.dim())]
            sizes = [param.shape[dim] if dim in cut else local.shape[dim] for dim in range(param.dim())]
            kept = self._accumulator(number, sizes, grid)
            found.append(GridAccumulator(kept.to_local().view(grid_shape(sizes, grid)), grid, starts))
        return found

    def _index_sets(self, cover: IndexSets) -> list[Accumulator]:
        param, local = self._param, self._param.to_local()
        (count,) = cover.state_shapes(param.shape)[0]
        kept = self._accumulator(0, (count,), (0,) * param.dim(), (count,))
        box = tuple((start(param, dim), local.shape[dim]) for dim in range(param.dim()))
        return [IndexSetAccumulator(kept.to_local(), *cover.memberships(param.device, box))]

    def _accumulator(self, number: int, sizes: Any, grid: Grid, stored: tuple[int, ...] | None = None) -> DTensor:
        """Return one accumulator tensor, which is zero in the first step. The grid cuts the dimensions in `sizes`."""
        key, whole = f"accumulator_{number}", stored or stored_shape(self._param.shape, grid)
        if key not in self._state:
            part = stored or stored_shape(sizes, grid)
            placements = [of_accumulator(placement, grid) for placement in self._param.placements]
            self._state[key] = zeros(self._param, part, whole, placements)
        kept: DTensor = self._state[key]
        check_accumulator(kept, whole, self._param)
        self._kept.append((kept, grid))
        return kept

    def waiting(self) -> list[PartialMaxima]:
        """Return each tensor of maxima that does not yet include the other ranks' parts."""
        found = []
        for accumulator, (kept, grid) in zip(self.task.accumulators, self._kept, strict=True):
            joined = tuple(dim for dim, joins in enumerate(over(self._param, grid)) if joins)
            values = accumulator.old if accumulator.new is None else accumulator.new
            found.append(_waiting(values, kept, joined))
        if isinstance(self.task.momentum, SharedInt8Momentum):
            kept = self._state["momentum_scale"]
            found.append(_waiting(self.task.momentum.largest, kept, crossing(self._param)))
        return [one for one in found if one.over]


def _waiting(values: Tensor, kept: DTensor, joined: tuple[int, ...]) -> PartialMaxima:
    along = tuple(dim for dim, placement in enumerate(kept.placements) if not placement.is_replicate())
    return PartialMaxima(values, largest_part(kept), kept.device_mesh, joined, along)


def _gradient(param: DTensor) -> Tensor:
    grad: Any = param.grad
    if not is_dtensor(grad):
        raise ValueError("a DTensor parameter needs a dense DTensor gradient")
    if grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    local: Tensor = grad.to_local()
    return local
