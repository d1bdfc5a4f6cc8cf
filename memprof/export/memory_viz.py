"""Writes a trace as the pickle that PyTorch's memory viewer opens (https://pytorch.org/memory_viz).

The format is that of `torch.cuda.memory._dump_snapshot` (`_snapshot` in torch/cuda/memory.py,
torch/csrc/cuda/memory_snapshot.cpp), checked on 2.13.0 with `torch.cuda._memory_viz`. In this file the stack of an
allocation has two frames: the operator with its module, and what the block holds in which phase. A trace has no clock,
so the time of an event is its number in microseconds.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from memprof.allocator.caching import CachingAllocator, Handle
from memprof.allocator.driver import SEGMENTS_FROM, SimulatedDriver
from memprof.allocator.settings import SMALL_LIMIT, AllocatorSettings
from memprof.trace.events import CACHE_EMPTIED, Block, Trace

Entry = dict[str, Any]
_ALIGNMENT = 512


def save_snapshot(trace: Trace, path: Path, settings: AllocatorSettings | None = None) -> None:
    """Write a trace as a memory snapshot.

    Args:
        trace: the events of a trial, with the sizes that were requested.
        path: the path of the pickle.
        settings: the settings of the caching allocator that serves the trace. None means that memory is taken and given
            back block by block, as on the CPU.
    """
    with path.open("wb") as file:
        pickle.dump(make_snapshot(trace, settings), file, protocol=4)  # the viewer reads no later protocol


def make_snapshot(trace: Trace, settings: AllocatorSettings | None = None) -> dict[str, Any]:
    """Return the content of the snapshot: the whole history of one device, and its segments at the end.

    Args:
        trace: the events of a trial, with the sizes that were requested.
        settings: the settings of the caching allocator; see `save_snapshot`.
    """
    allocator: _RecordingAllocator = _CachingModel(settings) if settings is not None else _PlainAllocator()
    history: list[Entry] = []
    for time, (number, size) in enumerate(trace.events):
        if number == CACHE_EMPTIED:
            history += [{**entry, "time_us": time} for entry in allocator.empty_cache()]
        elif size:
            block = trace.blocks[number]
            recorded = allocator.allocate(number, block) if size > 0 else allocator.free(number, block)
            history += [{**entry, "time_us": time} for entry in recorded]
    return {
        "device_traces": [history],
        "segments": allocator.segments(trace.blocks),
        "allocator_settings": {},
        "external_annotations": [],
    }


class _RecordingAllocator(Protocol):
    """Serves blocks, and returns what a recording allocator would have recorded."""

    def allocate(self, number: int, block: Block) -> list[Entry]:
        """Serve a block, by its number."""

    def free(self, number: int, block: Block) -> list[Entry]:
        """Take a block back."""

    def empty_cache(self) -> list[Entry]:
        """Give back what nobody uses."""

    def segments(self, blocks: Sequence[Block]) -> list[Entry]:
        """Return the segments that are held now."""


class _PlainAllocator:
    """SimulatedDriver that is taken and given back block by block. Each block is its own segment."""

    def __init__(self) -> None:
        self._live: dict[int, int] = {}
        self._next = SEGMENTS_FROM

    def allocate(self, number: int, block: Block) -> list[Entry]:
        address = self._live[number] = self._next
        self._next += -(-block.size // _ALIGNMENT) * _ALIGNMENT
        frames = _frames(block)
        return [
            _entry("segment_alloc", address, block.size, block.stream, frames),
            _entry("alloc", address, block.size, block.stream, frames),
        ]

    def free(self, number: int, block: Block) -> list[Entry]:
        address = self._live.pop(number)
        actions = ("free_requested", "free_completed", "segment_free")
        return [_entry(action, address, block.size, block.stream, []) for action in actions]

    def empty_cache(self) -> list[Entry]:
        return []

    def segments(self, blocks: Sequence[Block]) -> list[Entry]:
        return [
            _segment([_held(address, blocks[number].size, blocks[number])], blocks[number].stream)
            for number, address in self._live.items()
        ]


class _CachingModel:
    """A model of PyTorch's caching allocator."""

    def __init__(self, settings: AllocatorSettings) -> None:
        self._driver = _RecordingDriver()
        self._allocator = CachingAllocator(settings=settings, driver=self._driver)
        self._live: dict[int, Handle] = {}

    def allocate(self, number: int, block: Block) -> list[Entry]:
        handle = self._live[number] = self._allocator.allocate(block.size, block.stream)
        frames = _frames(block)
        taken = [_entry(*recorded, block.stream, frames) for recorded in self._driver.take_records()]
        return [*taken, _entry("alloc", handle.address, block.size, block.stream, frames)]

    def free(self, number: int, block: Block) -> list[Entry]:
        handle = self._live.pop(number)
        address = handle.address
        self._allocator.free(handle)
        return [
            _entry(action, address, block.size, block.stream, []) for action in ("free_requested", "free_completed")
        ]

    def empty_cache(self) -> list[Entry]:
        self._allocator.empty_cache()
        return [_entry(*recorded, 0, []) for recorded in self._driver.take_records()]

    def segments(self, blocks: Sequence[Block]) -> list[Entry]:
        owners = {id(handle): number for number, handle in self._live.items()}
        made = []
        for run in _mapped_runs(self._live.values(), self._allocator):
            held = [
                _held(part.address, part.size, blocks[owners[id(part)]] if id(part) in owners else None) for part in run
            ]
            made.append(_segment(held, run[0].stream, run[0].pool.small, bool(run[0].segment_end)))
        return made


class _RecordingDriver(SimulatedDriver):
    """A driver with unlimited memory that records what it gives and takes."""

    def __init__(self) -> None:
        super().__init__(None)
        self._records: list[tuple[str, int, int]] = []

    def allocate(self, size: int, stream: int) -> int | None:
        address = super().allocate(size, stream)
        assert address is not None
        self._records.append(("segment_alloc", address, size))
        return address

    def free(self, address: int, size: int) -> None:
        super().free(address, size)
        self._records.append(("segment_free", address, size))

    def map(self, address: int, size: int) -> bool:
        self._records.append(("segment_map", address, size))
        return super().map(address, size)

    def unmap(self, address: int, size: int) -> None:
        super().unmap(address, size)
        self._records.append(("segment_unmap", address, size))

    def take_records(self) -> list[tuple[str, int, int]]:
        """Return what was recorded since the last call."""
        records, self._records = self._records, []
        return records


def _mapped_runs(live: Iterable[Handle], allocator: CachingAllocator) -> list[list[Handle]]:
    """Return the allocator's memory as runs of neighbouring blocks that have memory behind them."""
    known: dict[int, Handle] = {}
    for block in [*live, *allocator.cached_blocks()]:
        first = block
        while first.previous is not None and first.previous.mapped:
            first = first.previous
        known[first.address] = first
    return [_following(known[address]) for address in sorted(known)]


def _following(first: Handle) -> list[Handle]:
    run = []
    block: Handle | None = first
    while block is not None and block.mapped:
        run.append(block)
        block = block.following
    return run


def _frames(block: Block) -> list[Entry]:
    operator = {"name": block.operator or "(no operator)", "filename": block.module or "(outside the model)", "line": 0}
    return [operator, {"name": block.category, "filename": block.phase, "line": 0}]


def _entry(action: str, address: int, size: int, stream: int, frames: list[Entry]) -> Entry:
    return {"action": action, "addr": address, "size": size, "stream": stream, "frames": frames}


def _held(address: int, size: int, block: Block | None) -> Entry:
    return {
        "address": address,
        "size": size,
        "requested_size": block.size if block is not None else 0,
        "state": "active_allocated" if block is not None else "inactive",
        "frames": _frames(block) if block is not None else [],
    }


def _segment(held: list[Entry], stream: int, small: bool | None = None, expandable: bool = False) -> Entry:
    total = sum(block["size"] for block in held)
    used = sum(block["size"] for block in held if block["state"] == "active_allocated")
    return {
        "device": 0,
        "address": held[0]["address"],
        "total_size": total,
        "allocated_size": used,
        "active_size": used,
        "requested_size": sum(block["requested_size"] for block in held),
        "stream": stream,
        "segment_type": "small" if (total <= SMALL_LIMIT if small is None else small) else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": expandable,
        "frames": [],
        "blocks": held,
    }
