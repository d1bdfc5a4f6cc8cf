"""The entries that a sparse gradient holds, sorted, in groups of bounded size, with duplicates side by side.

A key is an entry's row-major index over the sparse dimensions. A gradient is never sorted or copied as a whole:
bisection finds ranges of keys with few entries, and the indices are read once for each range.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 1 << 14
"""The number of entries that are sorted at a time, with about 1 MiB of indices."""


@dataclass(frozen=True)
class Entries:
    """Some distinct keys, and the positions of their values in the gradient.

    Args:
        keys: int64, in ascending order.
        parts: a function that yields, part by part, the numbers of the gradient's entries and, for each, the position
            of its key in `keys`.
    """

    keys: Tensor
    parts: Callable[[], Iterable[tuple[Tensor, Tensor]]]

    def gradient(self, values: Tensor, most: int) -> Tensor:
        """Return the sum of the values of each key. Values are added in the order in which they come.

        Args:
            values: the gradient's values, or a part of each, of shape (entries, ...).
            most: the most numbers to gather at a time.

        Returns:
            A tensor of shape (keys, ...).
        """
        parts = list(itertools.islice(self.parts(), 2))
        if len(parts) == 1 and len(parts[0][0]) == len(self.keys):  # no duplicates
            return values.index_select(0, parts[0][0])
        total = values.new_zeros(len(self.keys), *values.shape[1:])
        step = max(1, most // max(1, values[:1].numel()))
        for numbers, which in self.parts():
            for start in range(0, len(numbers), step):
                part = slice(start, start + step)
                total.index_add_(0, which[part], values.index_select(0, numbers[part]))
        return total


def keys_of(indices: Tensor, shape: Sequence[int]) -> Iterator[Tensor]:
    """Yield the keys of a gradient's entries in their order, `GROUP` at a time.

    Args:
        indices: int64, of shape (sparse dimensions, entries).
        shape: the sparse dimensions of the parameter.
    """
    for start in range(0, indices.shape[1], GROUP):
        part = indices[:, start : start + GROUP]
        key = part[0]
        for size, more in zip(shape[1:], part[1:], strict=True):
            key = key * size + more
        yield key


def groups(indices: Tensor, shape: Sequence[int], most: int, run: int) -> Iterator[Entries]:
    """Yield all entries of a gradient in groups, by ascending keys.

    Args:
        indices: int64, of shape (sparse dimensions, entries). Duplicates are allowed.
        shape: the sparse dimensions of the parameter.
        most: the most keys of a group, at least `run`.
        run: the length of a run. Keys with the same quotient by this number are always in one group.
    """
    runs = -(-math.prod(shape) // run)
    yield from _split(_Keys(indices, shape), 0, runs, most, run)


def _split(keys: _Keys, low: int, high: int, most: int, run: int) -> Iterator[Entries]:
    """Bisect a range of runs until it has at most `GROUP` entries, or is a single run with many duplicates."""
    count = keys.count(low * run, high * run)
    if count == 0:
        return
    if count <= GROUP:
        yield from _sorted(keys.within(low * run, high * run), most, run)
    elif high - low == 1:
        yield keys.of_one_run(low * run, high * run)
    else:
        middle = (low + high) // 2
        yield from _split(keys, low, middle, most, run)
        yield from _split(keys, middle, high, most, run)


def _sorted(found: tuple[Tensor, Tensor], most: int, run: int) -> Iterator[Entries]:
    keys, order = torch.sort(found[0], stable=True)
    numbers = found[1][order]
    keys, which, counts = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
    first = [0, *counts.cumsum(0).tolist()]
    for start, stop in _cuts((keys // run).tolist() if run > 1 else list(range(len(keys))), most):
        part = slice(first[start], first[stop])
        pairs = [(numbers[part], which[part] - start)]
        yield Entries(keys[start:stop], lambda pairs=pairs: pairs)  # type: ignore[misc]


def _cuts(runs: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a list's parts, of at most `most` numbers each, that never separate equal neighbours.

    No number may occur more than `most` times.
    """
    start = 0
    while start < len(runs):
        stop = min(start + most, len(runs))
        while stop < len(runs) and runs[stop] == runs[stop - 1]:
            stop -= 1
        yield start, stop
        start = stop


class _Keys:
    def __init__(self, indices: Tensor, shape: Sequence[int]) -> None:
        self._indices, self._shape = indices, shape

    def _segments(self) -> Iterator[tuple[int, Tensor]]:
        yield from zip(itertools.count(0, GROUP), keys_of(self._indices, self._shape), strict=False)

    def _within(self, low: int, high: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start, key in self._segments():
            numbers = ((key >= low) & (key < high)).nonzero().flatten()
            yield key[numbers], numbers + start

    def count(self, low: int, high: int) -> int:
        """Return the number of entries with keys from `low` up to, but not including, `high`."""
        if self._indices.shape[1] <= GROUP:
            return self._indices.shape[1]
        return sum(int(((key >= low) & (key < high)).sum()) for _, key in self._segments())

    def within(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Return the keys and the numbers of these entries."""
        keys, numbers = zip(*self._within(low, high), strict=True)
        return torch.cat(keys), torch.cat(numbers)

    def of_one_run(self, low: int, high: int) -> Entries:
        """Return the entries of a run of few keys with many duplicates. Its parts are read one by one."""
        present = torch.zeros(high - low, dtype=torch.bool, device=self._indices.device)
        for key, _ in self._within(low, high):
            present[key - low] = True
        place = torch.cumsum(present, 0) - 1
        return Entries(
            present.nonzero().flatten() + low,
            lambda: ((numbers, place[key - low]) for key, numbers in self._within(low, high)),
        )
