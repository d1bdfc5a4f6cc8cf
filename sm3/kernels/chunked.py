"""The portable kernel: SM3-I and SM3-II tile by tile, with ordinary torch operations, on any device.

Every operation is elementwise, a minimum or a maximum, so the cut into tiles changes no bit of the result.
Squares are rounded before they are added (no `addcmul`, whose vector and scalar parts round differently), so
neither does the length of a tile.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from .task import Accumulator, Scratch, Task
from .tiles import Tile, owned_by_tiles, tile_steps, tiles


def gather(task: Task, scratch: Scratch) -> None:
    """First half of a step: everything that depends on this tensor alone.

    SM3-II: nu(i) = min of mu(r) over the sets with i, plus g(i)^2; updates the parameter; new mu(r) = max nu.
    SM3-I: only the maximum of g^2 over each set, into `new`.
    """
    prepare(task)
    for tile in tiles(task.param.shape, task.steps):
        grad = _float32(task.grad[tile], "grad", scratch)
        if task.options.variant == "I":
            fold_max(task, tile, torch.mul(grad, grad, out=scratch.take("nu", grad)))
            continue
        nu = _second_moment(task, tile, grad, scratch)
        fold_max(task, tile, nu)
        _descend(task, tile, grad, nu, scratch)


def finish(task: Task, scratch: Scratch) -> None:
    """Second half, once `new` holds the maxima over the whole tensor: store them, and update in SM3-I."""
    beta = task.options.beta
    for accumulator in task.accumulators:
        new = accumulator.new
        if new is not None and task.options.variant == "I":
            accumulator.old.mul_(beta or 1.0).add_(new.mul_(1 - beta))
        elif new is not None and not accumulator.in_place:
            accumulator.old.copy_(new)
        accumulator.new = None
    if task.options.variant == "I":
        for tile in tiles(task.param.shape, task.steps):
            grad = _float32(task.grad[tile], "grad", scratch)
            nu = least(task, tile, 1.0, scratch.take("nu", grad))
            _descend(task, tile, grad, nu, scratch)


def prepare(task: Task) -> None:
    """Choose the tiles, and give accumulators that tiles share a second copy for their new values."""
    grids = [accumulator.grid for accumulator in task.accumulators]
    task.steps = tile_steps(task.param.shape, grids)
    for accumulator in task.accumulators:
        if accumulator.new is not None:
            continue
        owned = task.options.variant == "II" and owned_by_tiles(
            task.param.shape, task.steps, accumulator.grid
        )
        accumulator.new = accumulator.old if owned else torch.zeros_like(accumulator.old)


def _float32(tile: Tensor, use: str, scratch: Scratch) -> Tensor:
    return tile if tile.dtype == torch.float32 else scratch.take(use, tile).copy_(tile)


def _second_moment(task: Task, tile: Tile, grad: Tensor, scratch: Scratch) -> Tensor:
    beta = task.options.beta
    nu = least(task, tile, beta or 1.0, scratch.take("nu", grad))
    square = torch.mul(grad, grad, out=scratch.take("work", grad))
    return nu.add_(square.mul_(1 - beta) if beta else square)


def least(task: Task, tile: Tile, scale: float, out: Tensor) -> Tensor:
    """Write into `out`, for each index, the least old accumulator of its sets, times `scale`."""
    values = [_read(accumulator, tile, out.shape) for accumulator in task.accumulators]
    if scale != 1.0:
        values = [value * scale for value in values]
    *first, last = values
    if not first:
        return out.copy_(last)
    return torch.minimum(reduce(torch.minimum, first), last, out=out)


def _region(accumulator: Accumulator, tile: Tile) -> Tile:
    blocks = zip(tile, accumulator.grid, strict=True)
    return tuple(slice(part.start // b, -(-part.stop // b)) if b else slice(0, 1) for part, b in blocks)


def _partial(accumulator: Accumulator, shape: torch.Size) -> list[int]:
    """Return the dimensions cut in blocks longer than one entry and shorter than the dimension."""
    counts = accumulator.old.shape
    return [d for d, block in enumerate(accumulator.grid) if block > 1 and counts[d] > 1 and shape[d] > 0]


def _read(accumulator: Accumulator, tile: Tile, shape: torch.Size) -> Tensor:
    value = accumulator.old[_region(accumulator, tile)]
    for dim in _partial(accumulator, shape):
        part, block = tile[dim], accumulator.grid[dim]
        numbers = torch.arange(part.start, part.stop, device=value.device) // block - part.start // block
        value = value.index_select(dim, numbers)
    return value


def fold_max(task: Task, tile: Tile, nu: Tensor) -> None:
    """Raise the new accumulators to the tile's maxima, last dimension first so that others read less."""
    accumulators = task.accumulators
    for number in reversed(range(len(accumulators))):
        _fold(accumulators[number], tile, nu)
        rest = accumulators[:number]
        shared = [d for d in range(nu.dim()) if nu.shape[d] > 1 and all(a.old.shape[d] == 1 for a in rest)]
        if rest and shared:
            nu = nu.amax(shared, keepdim=True)


def _fold(accumulator: Accumulator, tile: Tile, nu: Tensor) -> None:
    whole = [d for d, count in enumerate(accumulator.old.shape) if count == 1 and nu.shape[d] > 1]
    value = nu.amax(whole, keepdim=True) if whole else nu
    for dim in _partial(accumulator, nu.shape):
        value = _block_maxima(value, dim, tile[dim], accumulator.grid[dim])
    assert accumulator.new is not None
    target = accumulator.new[_region(accumulator, tile)]
    if accumulator.in_place:
        target.copy_(value)
    else:
        torch.maximum(target, value, out=target)


def _block_maxima(value: Tensor, dim: int, part: slice, block: int) -> Tensor:
    """Return the maxima over blocks along one dimension; zeros, the least there is, fill up cut blocks."""
    ends = [part.start % block, -part.stop % block]
    padded = torch.nn.functional.pad(value, [0, 0] * (value.dim() - 1 - dim) + ends)
    return torch.amax(torch.unflatten(padded, dim, (-1, block)), dim + 1)


def _descend(task: Task, tile: Tile, grad: Tensor, nu: Tensor, scratch: Scratch) -> None:
    """Update one tile: p <- (1 - lr wd) p - lr g / max(sqrt(nu), eps), with momentum if any."""
    options = task.options
    lr, sign = options.lr, options.sign
    param = task.param[tile]
    root = nu.clamp_min_(options.eps**2).sqrt_()
    if options.weight_decay:
        param.mul_(1 - lr * options.weight_decay)
    if task.momentum is not None:
        average = task.momentum.update(tile, grad, root, options.momentum, sign, scratch)
        param.add_(torch.mul(average, -lr, out=scratch.take("work", grad)))
    elif param.dtype == torch.float32 and not isinstance(lr, Tensor):
        param.addcdiv_(grad, root, value=-lr * sign)
    else:
        param.add_(torch.mul(grad, lr * -sign, out=scratch.take("work", grad)).div_(root))
