"""The portable kernel: SM3-I and SM3-II tile by tile, with torch's own operations, on any device.

Every operation is elementwise, a minimum or a maximum, so the cut into tiles changes no bit of the result: `inner.py`
sees to it that neither does the length of a tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial, reduce

import torch
from torch import Tensor

from . import inner
from .accumulators import GridAccumulator, added
from .matrix import is_singleton
from .scratch import Scratch
from .shared_momentum import SharedInt8Momentum
from .target import Target, float32
from .task import Task
from .tiles import TILE, Tile, are_runs, tile_steps, tiles


def gather(task: Task, scratch: Scratch) -> None:
    """First half of a step: everything that depends on this tensor alone.

    SM3-II: nu(i) = min of mu(r) over the sets with i, plus g(i)^2; updates the parameter; new mu(r) = max nu.
    SM3-I: only the maximum of g^2 over each set, into `new`.
    """
    prepare(task)
    for tile in _tiles(task):
        if in_two_passes(task):
            grad = float32(task.grad[tile], scratch, "grad")
            fold_max(task, tile, torch.mul(grad, grad, out=scratch.take("nu", grad)))
        else:
            _second(task, tile, scratch)


def finish(task: Task, scratch: Scratch) -> None:
    """Second half, once `new` holds the maxima over the whole tensor: store them, and update in SM3-I.

    Where the first half only measured an int8 momentum that ranks share, the update comes here too.
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
    """SM3-II on one tile."""
    grad = float32(task.grad[tile], scratch, "grad")
    nu = least(task, tile, task.options.beta or 1.0, scratch.take("nu", grad))
    sum_and_descend(task, tile, grad, nu, partial(fold_max, task, tile), scratch)


def add_maxima(task: Task) -> None:
    """SM3-I: mu(r) <- mu(r) + max g^2 over S_r, or their average where beta is not 0."""
    for accumulator in task.accumulators:
        assert accumulator.new is not None
        if accumulator.new is not accumulator.old:
            added(accumulator.old, accumulator.new, task.options.beta)
        accumulator.new = accumulator.beta = None


def prepare(task: Task) -> None:
    """Choose the tiles, and give accumulators that tiles share a second copy for their new values."""
    _cut(task)
    task.positive = all(_at_least(a.old, task.options.eps**2) for a in task.accumulators)
    for accumulator in task.accumulators:
        if accumulator.new is not None:
            continue
        twice = in_two_passes(task)
        again = twice or task.measuring  # other ranks' maxima come in between
        owned = accumulator.owned(task.param.shape, task.steps) and not (again and accumulator.exchanged)
        accumulator.new = accumulator.old if owned else torch.zeros_like(accumulator.old)
        accumulator.beta = task.options.beta if owned and twice else None


def _cut(task: Task) -> None:
    grids = [a.grid for a in task.accumulators if isinstance(a, GridAccumulator)]
    shape, entries = task.param.shape, task.momentum.block if task.momentum else 1
    task.steps = tile_steps(shape, grids, entries, task.tile_limit())
    if not are_runs(shape, task.steps):  # then tiles are copied
        task.steps = tile_steps(shape, grids, entries, min(TILE, task.tile_limit()))


def _at_least(values: Tensor, floor: float) -> bool:
    """Say no where it is not known at once: on another device the host would have to wait."""
    if not values.is_cpu or not inner.has_data(values):
        return False
    return not values.numel() or bool(values.amin() >= floor)


def in_two_passes(task: Task) -> bool:
    """Say whether this is SM3-I with sets of more than one entry; otherwise both variants are the same."""
    return task.options.variant == "I" and not is_singleton(task)


def _tiles(task: Task) -> Iterable[Tile]:
    """Return a task's tiles; of a tensor without data (meta or fake) only the first, as all allocate alike.

    So a memory profiler predicts the step of a model of any size at once.
    """
    found = tiles(task.param.shape, task.steps)
    return found if inner.has_data(task.param) else itertools.islice(found, 1)


def least(task: Task, tile: Tile, scale: float, out: Tensor) -> Tensor:
    """Write into `out`, for each index, the least old accumulator of its sets, times `scale`."""
    values = [accumulator.read(tile, out) for accumulator in task.accumulators]
    if scale != 1.0:
        values = [value * scale for value in values]
    *first, last = values
    if not first:
        return out.copy_(last)
    return torch.minimum(reduce(torch.minimum, first).expand_as(out), last, out=out)


def fold_max(task: Task, tile: Tile, nu: Tensor) -> None:
    """Raise the new accumulators to the tile's maxima, last dimension first so that others read less.

    Of two passes that do this, the first, which measures, leaves those alone that are overwritten at once.
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
    """SM3-II on one tile: nu <- nu + g^2, folded into the new accumulators; p <- p - lr g / max(sqrt(nu), eps).

    Args:
        task: the parameter and its options.
        tile: which part of it.
        grad: the tile's gradient, float32.
        nu: the least old accumulators, times beta where it is not 0.
        fold: takes the sum.
        scratch: where temporaries come from.
    """
    beta = task.options.beta
    if beta:
        nu.add_(torch.mul(grad, grad, out=scratch.take("work", grad)).mul_(1 - beta))
    elif task.positive:
        target = Target(task, tile, scratch)
        inner.sum_and_descend(target.values, grad, nu, target.rate, scratch)
        fold(nu)
        return target.store(scratch)
    else:
        inner.add_square(nu, grad, scratch)
    fold(nu)
    return descend(task, tile, grad, nu, scratch)


def descend(task: Task, tile: Tile, grad: Tensor, nu: Tensor, scratch: Scratch) -> None:
    """Update one tile: p <- (1 - lr wd) p - lr g / max(sqrt(nu), eps), with momentum if any; nu is overwritten."""
    target = Target(task, tile, scratch)
    nu.clamp_min_(task.options.eps**2)
    inner.descend(target.values, grad, nu, target.rate, task.options.beta, scratch)
    target.store(scratch)
