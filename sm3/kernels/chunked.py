"""The portable kernel: SM3-I and SM3-II tile by tile, with ordinary torch operations, on any device.

Every operation is elementwise, a minimum or a maximum, so the cut into tiles changes no bit of the result.
Squares are rounded before they are added (no `addcmul`, whose vector and scalar parts round differently), so
neither does the length of a tile.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from .accumulators import GridAccumulator
from .task import Scratch, Task
from .tiles import Tile, tile_steps, tiles


def gather(task: Task, scratch: Scratch) -> None:
    """First half of a step: everything that depends on this tensor alone.

    SM3-II: nu(i) = min of mu(r) over the sets with i, plus g(i)^2; updates the parameter; new mu(r) = max nu.
    SM3-I: only the maximum of g^2 over each set, into `new`.
    """
    prepare(task)
    for tile in _tiles(task):
        grad = float32(task.grad[tile], scratch)
        if task.options.variant == "I":
            fold_max(task, tile, torch.mul(grad, grad, out=scratch.take("nu", grad)))
            continue
        nu = _second_moment(task, tile, grad, scratch)
        fold_max(task, tile, nu)
        descend(task, tile, grad, nu, scratch)


def finish(task: Task, scratch: Scratch) -> None:
    """Second half, once `new` holds the maxima over the whole tensor: store them, and update in SM3-I."""
    if task.options.variant == "II":
        for accumulator in task.accumulators:
            accumulator.store()
        return
    add_maxima(task)
    for tile in _tiles(task):
        grad = float32(task.grad[tile], scratch)
        descend(task, tile, grad, least(task, tile, 1.0, scratch.take("nu", grad)), scratch)


def add_maxima(task: Task) -> None:
    """SM3-I: mu(r) <- mu(r) + max g^2 over S_r, or their average where beta is not 0."""
    beta = task.options.beta
    for accumulator in task.accumulators:
        assert accumulator.new is not None
        accumulator.old.mul_(beta or 1.0).add_(accumulator.new.mul_(1 - beta))
        accumulator.new = None


def prepare(task: Task) -> None:
    """Choose the tiles, and give accumulators that tiles share a second copy for their new values."""
    grids = [a.grid for a in task.accumulators if isinstance(a, GridAccumulator)]
    entries = task.momentum.block if task.momentum else 1
    task.steps = tile_steps(task.param.shape, grids, entries, task.tile_limit())
    for accumulator in task.accumulators:
        if accumulator.new is not None:
            continue
        owned = task.options.variant == "II" and accumulator.owned(task.param.shape, task.steps)
        accumulator.new = accumulator.old if owned else torch.zeros_like(accumulator.old)


def _tiles(task: Task) -> Iterable[Tile]:
    """Return a task's tiles; of a tensor without data (meta or fake) only the first, as all allocate alike.

    So a memory profiler predicts the step of a model of any size at once.
    """
    found = tiles(task.param.shape, task.steps)
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    if task.param.is_meta or (fake is not None and isinstance(task.param, fake.FakeTensor)):
        return itertools.islice(found, 1)
    return found


def float32(tile: Tensor, scratch: Scratch) -> Tensor:
    """Return the tile itself, or its copy in float32."""
    return tile if tile.dtype == torch.float32 else scratch.take("grad", tile).copy_(tile)


def _second_moment(task: Task, tile: Tile, grad: Tensor, scratch: Scratch) -> Tensor:
    beta = task.options.beta
    nu = least(task, tile, beta or 1.0, scratch.take("nu", grad))
    square = torch.mul(grad, grad, out=scratch.take("work", grad))
    return nu.add_(square.mul_(1 - beta) if beta else square)


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
    """Raise the new accumulators to the tile's maxima, last dimension first so that others read less."""
    accumulators = task.accumulators
    for number in reversed(range(len(accumulators))):
        accumulators[number].fold(tile, nu)
        rest = accumulators[:number]
        shared = [d for d in range(nu.dim()) if nu.shape[d] > 1 and all(a.old.shape[d] == 1 for a in rest)]
        if rest and shared:
            nu = nu.amax(shared, keepdim=True)


def descend(task: Task, tile: Tile, grad: Tensor, nu: Tensor, scratch: Scratch) -> None:
    """Update one tile: p <- (1 - lr wd) p - lr g / max(sqrt(nu), eps), with momentum if any.

    The reciprocal root is what PyTorch rounds alike everywhere on the CPU (a correct root, then a correct quotient);
    `torch.sqrt` may be off by one unit in the last place.
    """
    options = task.options
    param = task.param[tile]
    inverse = nu.clamp_min_(options.eps**2).rsqrt_()
    if options.weight_decay:
        param.mul_(1 - options.lr * options.weight_decay)
    update = torch.mul(grad, inverse, out=scratch.take("work", grad))
    if task.momentum is None:
        param.add_(update.mul_(options.lr * -options.sign))
        return
    average = task.momentum.update(tile, update, options.momentum, options.sign, scratch)
    param.add_(torch.mul(average, -options.lr, out=scratch.take("work", grad)))
