"""The portable kernel: SM3-I and SM3-II tile by tile, with PyTorch's own operations, on any device.

Every operation is elementwise, a minimum or a maximum, so the division into tiles changes no bit of the result.
`inner.py` makes sure that the length of a tile does not change the result either.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial, reduce

import torch
from torch import Tensor

from . import inner
from .accumulators import GridAccumulator, added
from .matrix_view import is_singleton
from .scratch import Scratch
from .shared_momentum import SharedInt8Momentum
from .task import Task
from .tile_target import TileTarget, float32
from .tiles import TILE, Tile, are_runs, tile_steps, tiles


def gather(task: Task, scratch: Scratch) -> None:
    """Run the first half of a step, which depends on this tensor alone.

    In SM3-II it computes nu(i) = min of mu(r) over the sets that contain i, plus g(i)^2, updates the parameter, and
    sets the new mu(r) = max nu. In SM3-I it only writes the maximum of g^2 over each set into `new`.

    Args:
        task: the parameter, its state and its options.
        scratch: the source of temporaries.
    """
    prepare(task)
    for tile in _tiles(task):
        if in_two_passes(task):
            grad = float32(task.grad[tile], scratch, "grad")
            fold_max(task, tile, torch.mul(grad, grad, out=scratch.take("nu", grad)))
        else:
            _second(task, tile, scratch)


def finish(task: Task, scratch: Scratch) -> None:
    """Run the second half of a step, which starts when `new` holds the maxima over the whole tensor.

    It stores the maxima, and in SM3-I it updates the parameter. It also updates the parameter if the first half only
    measured an int8 momentum that ranks share.

    Args:
        task: the parameter, its state and its options.
        scratch: the source of temporaries.
    """
    if in_two_passes(task):
        add_maxima(task)
        for tile in _tiles(task):
            grad = float32(task.grad[tile], scratch, "grad")
            descend(task, tile, grad, least(task, tile, 1.0, scratch.take("nu", grad)), scratch)
        return
    if isinstance(task.momentum, SharedInt8Momentum):
        task.measuring = False
        for tile in _tiles(task):
            _second(task, tile, scratch)
        task.momentum.finish()
    for accumulator in task.accumulators:
        accumulator.store()


def _second(task: Task, tile: Tile, scratch: Scratch) -> None:
    """Run SM3-II on one tile."""
    grad = float32(task.grad[tile], scratch, "grad")
    nu = least(task, tile, task.options.beta or 1.0, scratch.take("nu", grad))
    sum_and_descend(task, tile, grad, nu, partial(fold_max, task, tile), scratch)


def add_maxima(task: Task) -> None:
    """Update the accumulators of SM3-I: mu(r) <- mu(r) + max g^2 over S_r, or their average if beta is not 0.

    Args:
        task: a task whose accumulators hold the maxima in `new`.
    """
    for accumulator in task.accumulators:
        assert accumulator.new is not None
        if accumulator.new is not accumulator.old:
            added(accumulator.old, accumulator.new, task.options.beta)
        accumulator.new = accumulator.beta = None


def prepare(task: Task) -> None:
    """Choose the tiles, and give the accumulators that several tiles share a second copy for their new values.

    Args:
        task: the task, whose `steps` and `positive` are set.
    """
    _cut(task)
    task.positive = all(_at_least(a.old, task.options.eps**2) for a in task.accumulators)
    for accumulator in task.accumulators:
        if accumulator.new is not None:
            continue
        twice = in_two_passes(task)
        again = twice or task.measuring  # the maxima of other ranks arrive between the two passes
        owned = accumulator.owned(task.param.shape, task.steps) and not (again and accumulator.exchanged)
        accumulator.new = accumulator.old if owned else torch.zeros_like(accumulator.old)
        accumulator.beta = task.options.beta if owned and twice else None


def _cut(task: Task) -> None:
    grids = [a.grid for a in task.accumulators if isinstance(a, GridAccumulator)]
    shape, entries = task.param.shape, task.momentum.block if task.momentum else 1
    task.steps = tile_steps(shape, grids, entries, task.tile_limit())
    if not are_runs(shape, task.steps):  # tiles that are not contiguous are copied, which takes more buffers
        task.steps = tile_steps(shape, grids, entries, min(TILE, task.tile_limit()))


def _at_least(values: Tensor, floor: float) -> bool:
    """Return whether all values reach a floor; False on a device for whose answer the host would have to wait."""
    if not values.is_cpu or not inner.has_data(values):
        return False
    return not values.numel() or bool(values.amin() >= floor)


def in_two_passes(task: Task) -> bool:
    """Return whether a task is SM3-I with sets of more than one entry. Otherwise both variants are the same.

    Args:
        task: a dense or sparse task.
    """
    return task.options.variant == "I" and not is_singleton(task)


def _tiles(task: Task) -> Iterable[Tile]:
    """Return the tiles of a task. For a tensor without data (meta or fake) that is only the first tile.

    All tiles allocate alike, so a memory profiler can predict the step of a model of any size at once.
    """
    found = tiles(task.param.shape, task.steps)
    return found if inner.has_data(task.param) else itertools.islice(found, 1)


def least(task: Task, tile: Tile, scale: float, out: Tensor) -> Tensor:
    """Write the smallest old accumulator of each index, times `scale`, into `out`.

    Args:
        task: the parameter and its accumulators.
        tile: the part of the parameter.
        scale: the factor.
        out: a float32 tensor of the tile's shape, which is overwritten and returned.
    """
    values = [accumulator.read(tile, out) for accumulator in task.accumulators]
    if scale != 1.0:
        values = [value * scale for value in values]
    *first, last = values
    if not first:
        return out.copy_(last)
    return torch.minimum(reduce(torch.minimum, first).expand_as(out), last, out=out)


def fold_max(task: Task, tile: Tile, nu: Tensor) -> None:
    """Raise the new accumulators to the maxima of a tile.

    The last dimension comes first, so that the other accumulators have fewer numbers to read. If the momentum needs two
    passes over the tiles, the first pass (which measures) leaves out the accumulators that are overwritten at once, and
    the second pass leaves out the others.

    Args:
        task: the parameter and its accumulators.
        tile: the part of the parameter.
        nu: the second moments of the tile, float32.
    """
    accumulators, twice = task.accumulators, isinstance(task.momentum, SharedInt8Momentum)
    for number in reversed(range(len(accumulators))):
        if not twice or (accumulators[number].new is accumulators[number].old) != task.measuring:
            accumulators[number].fold(tile, nu)
        rest = accumulators[:number]
        shared = [d for d in range(nu.dim()) if nu.shape[d] > 1 and all(a.old.shape[d] == 1 for a in rest)]
        if rest and shared:
            nu = nu.amax(shared, keepdim=True)


def sum_and_descend(
    task: Task, tile: Tile, grad: Tensor, nu: Tensor, fold: Callable[[Tensor], None], scratch: Scratch
) -> None:
    """Run SM3-II on one tile: nu <- nu + g^2 and p <- p - lr g / max(sqrt(nu), eps).

    Args:
        task: the parameter and its options.
        tile: the part of the parameter.
        grad: the gradient of the tile, float32.
        nu: the smallest old accumulators, times beta if it is not 0. It is overwritten.
        fold: a function that raises the new accumulators to the sum.
        scratch: the source of temporaries.
    """
    beta = task.options.beta
    if beta:
        nu.add_(torch.mul(grad, grad, out=scratch.take("work", grad)).mul_(1 - beta))
    elif task.positive:
        target = TileTarget(task, tile, scratch)
        inner.sum_and_descend(target.values, grad, nu, target.rate, scratch)
        fold(nu)
        return target.store(scratch)
    else:
        inner.add_square(nu, grad, scratch)
    fold(nu)
    return descend(task, tile, grad, nu, scratch)


def descend(task: Task, tile: Tile, grad: Tensor, nu: Tensor, scratch: Scratch) -> None:
    """Update one tile: p <- (1 - lr wd) p - lr g / max(sqrt(nu), eps), with momentum if there is any.

    Args:
        task: the parameter and its options.
        tile: the part of the parameter.
        grad: the gradient of the tile, float32.
        nu: the second moments of the tile, float32. It is overwritten.
        scratch: the source of temporaries.
    """
    target = TileTarget(task, tile, scratch)
    nu.clamp_min_(task.options.eps**2)
    inner.descend(target.values, grad, nu, target.rate, task.options.beta, scratch)
    target.store(scratch)
