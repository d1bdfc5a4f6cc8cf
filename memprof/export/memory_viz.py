"""A trace as the pickle that PyTorch's memory viewer opens (https://pytorch.org/memory_viz).

The format is that of `torch.cuda.memory._dump_snapshot` (`_snapshot` in torch/cuda/memory.py,
torch/csrc/cuda/memory_snapshot.cpp), checked on 2.13.0 with `torch.cuda._memory_viz`. An allocation's stack has two
frames here: the operator with its module, and what the block holds in which phase. There is no clock in a trace: an
event's time is its number in microseconds.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from memprof.allocator.caching import CachingAllocator, Handle
from memprof.allocator.driver import SEGMENTS_FROM, Memory
from memprof.allocator.settings import SMALL_LIMIT, AllocatorSettings
from memprof.trace.events import CACHE_EMPTIED, Block, Trace

Entry = dict[str, Any]
_ALIGNMENT = 512


def save_snapshot(trace: Trace, path: Path, settings: AllocatorSettings | None = None) -> None:
    """Write a trace as a memory snapshot.

    Args:
        trace: the events of a trial, at the sizes that were asked for.
        path: of the pickle.
        settings: of the caching allocator to serve the trace with; None for memory that is taken and given back block
            by block, as on the CPU.
    """
    with path.open("wb") as file:
        pickle.dump(make_snapshot(trace, settings), file, protocol=4)  # the viewer reads no later one


def make_snapshot(trace: Trace, settings: AllocatorSettings | None = None) -> dict[str, Any]:
    """Return the snapshot's content: the whole history of one device, and its segments after it."""
    server: _Server = _Cached(settings) if settings is not None else _Plain()
    history: list[Entry] = []
    for time, (number, size) in enumerate(trace.events):
        if number == CACHE_EMPTIED:
            history += [{**entry, "time_us": time} for entry in server.empty_cache()]
        elif size:
            block = trace.blocks[number]
            noted = server.allocate(number, block) if size > 0 else server.free(number, block)
            history += [{**entry, "time_us": time} for entry in noted]
    return {
        "device_traces": [history],
        "segments": server.segments(trace.blocks),
        "allocator_settings": {},
        "external_annotations": [],
    }


class _Server(Protocol):
    """Serves blocks, and tells what a recording allocator would have noted."""

    def allocate(self, number: int, block: Block) -> list[Entry]:
        """Serve a block, by its number."""

    def free(self, number: int, block: Block) -> list[Entry]:
        """Take it back."""

    def empty_cache(self) -> list[Entry]:
        """Give back what nobody uses."""

    def segments(self, blocks: Sequence[Block]) -> list[Entry]:
        """Return what is there now."""


class _Plain:
    """Memory that is taken and given back block by block: each is a segment of its own."""

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


class _Cached:
    """PyTorch's caching allocator, modelled."""

    def __init__(self, settings: AllocatorSettings) -> None:
        self._driver = _NotingMemory()
        self._allocator = CachingAllocator(settings=settings, driver=self._driver)
        self._live: dict[int, Handle] = {}

    def allocate(self, number: int, block: Block) -> list[Entry]:
        handle = self._live[number] = self._allocator.allocate(block.size, block.stream)
        frames = _frames(block)
        taken = [_entry(*noted, block.stream, frames) for noted in self._driver.take_notes()]
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
        return [_entry(*noted, 0, []) for noted in self._driver.take_notes()]

    def segments(self, blocks: Sequence[Block]) -> list[Entry]:
        owners = {id(handle): number for number, handle in self._live.items()}
        made = []
        for stretch in _stretches(self._live.values(), self._allocator):
            held = [
                _held(part.address, part.size, blocks[owners[id(part)]] if id(part) in owners else None)
                for part in stretch
            ]
            made.append(_segment(held, stretch[0].stream, stretch[0].pool.small, bool(stretch[0].segment_end)))
        return made


class _NotingMemory(Memory):
    """A driver without end that notes what it gives and takes."""

    def __init__(self) -> None:
        super().__init__(None)
        self._notes: list[tuple[str, int, int]] = []

    def allocate(self, size: int, stream: int) -> int | None:
        address = super().allocate(size, stream)
        assert address is not None
        self._notes.append(("segment_alloc", address, size))
        return address

    def free(self, address: int, size: int) -> None:
        super().free(address, size)
        self._notes.append(("segment_free", address, size))

    def map(self, address: int, size: int) -> bool:
        self._notes.append(("segment_map", address, size))
        return super().map(address, size)

    def unmap(self, address: int, size: int) -> None:
        super().unmap(address, size)
        self._notes.append(("segment_unmap", address, size))

    def take_notes(self) -> list[tuple[str, int, int]]:
        """Return what was noted since the last call."""
        notes, self._notes = self._notes, []
        return notes


def _stretches(live: Iterable[Handle], allocator: CachingAllocator) -> list[list[Handle]]:
    """Return the allocator's memory as runs of neighbouring blocks with memory behind them."""
    known: dict[int, Handle] = {}
    for block in [*live, *allocator.cached_blocks()]:
        first = block
        while first.previous is not None and first.previous.mapped:
            first = first.previous
        known[first.address] = first
    return [_following(known[address]) for address in sorted(known)]


def _following(first: Handle) -> list[Handle]:
    stretch = []
    block: Handle | None = first
    while block is not None and block.mapped:
        stretch.append(block)
        block = block.following
    return stretch


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
