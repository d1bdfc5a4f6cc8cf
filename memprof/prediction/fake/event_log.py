"""The log of a fake training: its allocations and frees in order, as a real allocator would have recorded them."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from memprof.trace.events import Allocation, CacheMark, Entry, Free, LabelMark, Mark, SizeLimits

# The addresses of fake storages begin here. No process maps memory there on the platforms of PyTorch (x86-64 and
# ARM64 give user space less), so code that reads a fake tensor without the dispatcher faults instead of reading junk.
FIRST_ADDRESS = 1 << 58
_ALIGNMENT = 512  # kernels and `torch.compile` ask whether a pointer is aligned

# What a kernel does with memory of its own, in order. A size in bytes takes a block (with limits if the size is an
# estimate), -n frees the n-th block (from 1), and None makes the outputs, which otherwise are made first. Blocks that
# are still held are freed at the end.
Steps = Sequence["int | tuple[int, SizeLimits] | None"]
_T = TypeVar("_T")


class Memory(Protocol):
    """The memory of a device, which serves every request while the log is written."""

    def take(self, address: int, size: int, stream: int, limits: SizeLimits | None = None) -> None:
        """Serve a request.

        Args:
            address: The address of the block in the log.
            size: The bytes requested.
            stream: The CUDA stream.
            limits: The limits of the size if it is an estimate.

        Raises:
            torch.OutOfMemoryError: The memory does not suffice.
        """

    def give_back(self, address: int) -> None:
        """Free a block, if it was served.

        Args:
            address: The address of the block in the log.
        """

    def empty_cache(self) -> None:
        """Return unused memory to the driver."""


class _Watch(weakref.ref[torch.UntypedStorage]):
    """A weak reference to a storage, with its address and size."""

    __slots__ = ("address", "host", "owner", "size")

    address: int
    size: int
    owner: int | None
    host: bool


class EventLog:
    """The allocations, frees and marks of a training in order. The free of a storage is noted when the storage ends.

    PyTorch keeps the Python object of a storage alive as long as the storage itself. So a weak reference to it ends
    exactly when the last tensor or autograd node releases it (torch/csrc/Storage.cpp, checked on 2.13.0 and 2.15.0).

    Several optimizers can be stepped on one model. Events within `owned_by(i)` belong only to the i-th optimizer, and
    so does the free of every storage that was made there. `entries(i)` is the log as it would have been with only that
    optimizer.

    Attributes:
        meddlers: The optimizers in whose step a storage was freed that all optimizers share.
        stream: The CUDA stream on which work is enqueued and memory is allocated.
        live_bytes: The bytes allocated at the moment.
        peak_bytes: The most bytes allocated so far.
        strangers_on_host: Whether storages that no operator made (files, NumPy arrays) are on the host.
        memory: The memory that serves every request at once; None if the log is replayed afterwards.
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._owners: list[int | None] = []
        self._owner: int | None = None
        self._workspaces: list[tuple[int, int, int | None]] = []  # the memory that libraries keep: address, size, owner
        self._watches: dict[int, _Watch] = {}
        self._addresses = itertools.count(FIRST_ADDRESS, _ALIGNMENT)
        self.meddlers: set[int] = set()
        self.stream = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self.memory: Memory | None = None
        self.strangers_on_host = False

    def new_address(self) -> int:
        """Return an address that no storage has had so far."""
        return next(self._addresses)

    def mark(self, mark: Mark) -> None:
        """Put a mark between the last event and the next.

        Args:
            mark: The mark.
        """
        self._add(mark, self._owner)

    def allocated(self, storage: torch.UntypedStorage, address: int, size: int, host: bool = False) -> None:
        """Note a new storage.

        Args:
            storage: The storage, which is watched until it is freed.
            address: The address of the storage.
            size: The size of the storage in bytes.
            host: Whether the storage is in the host's memory, so that the device has no event for it.
        """
        if not host:
            self._request(address, size, self._owner)
        watch = _Watch(storage, self._died)
        watch.address, watch.size, watch.owner, watch.host = address, size, self._owner, host
        self._watches[address] = watch

    def resized(self, address: int, size: int) -> None:
        """Note that a storage released its memory and took another amount.

        Args:
            address: The address of the storage.
            size: The new bytes; 0 if it takes none.
        """
        watch = self._watches[address]
        if watch.size == size:
            return
        if watch.size and not watch.host:
            self._end(watch)
        watch.size = 0
        if size and not watch.host:
            self._request(address, size, watch.owner)
        watch.size = size

    def size_of(self, address: int) -> int:
        """Return the size of the storage at an address in bytes.

        Args:
            address: The address; the storage must have been noted.
        """
        return self._watches[address].size

    def workspace(self, size: int) -> None:
        """Note that a library took memory that it keeps.

        Args:
            size: The size of the memory in bytes.
        """
        address = self.new_address()
        self._request(address, size, self._owner)
        self._add(LabelMark("workspace", {address: ""}), self._owner)
        self._workspaces.append((address, size, self._owner))

    def release_workspaces(self) -> None:
        """Note that libraries freed the memory that they had kept."""
        for address, size, owner in self._workspaces:
            self._release(address, size, owner)
        self._workspaces.clear()

    def empty_cache(self) -> None:
        """Note that the caching allocator returns unused memory to the driver."""
        if self.memory is not None:
            self.memory.empty_cache()
        self._add(CacheMark(), self._owner)

    def scratch(self, steps: Steps, make_outputs: Callable[[], _T]) -> _T:
        """Note the blocks that a kernel takes and frees, and make its outputs at the right moment.

        Args:
            steps: What the kernel does with memory of its own.
            make_outputs: Makes the outputs.

        Returns:
            The outputs.
        """
        taken: list[tuple[int, int]] = []
        try:
            outputs = None if None in steps else (make_outputs(),)
            for step in steps:
                if step is None:
                    outputs = (make_outputs(),)
                elif isinstance(step, int) and step < 0:
                    self._give_back(*taken[-step - 1])
                    taken[-step - 1] = (0, 0)
                else:
                    taken.append(self._take(*(step if isinstance(step, tuple) else (step,))))
        finally:
            for address, size in taken:
                self._give_back(address, size)
        assert outputs is not None
        return outputs[0]

    def _take(self, size: int, limits: SizeLimits | None = None) -> tuple[int, int]:
        address = self.new_address()
        if size:
            self._request(address, size, self._owner, limits)
        return address, size

    def _give_back(self, address: int, size: int) -> None:
        if size:
            self._release(address, size, self._owner)

    def _request(self, address: int, size: int, owner: int | None, limits: SizeLimits | None = None) -> None:
        """Note an allocation. If the memory cannot serve it, note instead that the allocator emptied its cache."""
        if self.memory is not None and not owner:
            try:
                self.memory.take(address, size, self.stream, limits)
            except torch.OutOfMemoryError:
                self._add(CacheMark(), owner)
                gc.unfreeze()  # a program that tries again with less frees its memory first, reference cycles included
                raise
        self._add(Allocation(address, size, self.stream, limits), owner)
        self._count(size)

    def _release(self, address: int, size: int, owner: int | None) -> None:
        if self.memory is not None and not owner:
            self.memory.give_back(address)
        self._add(Free(address), owner)
        self._count(-size)

    def knows(self, address: int) -> bool:
        """Return whether the storage at an address has been noted and is still alive.

        Args:
            address: The address.
        """
        return address in self._watches

    def is_host(self, address: int) -> bool:
        """Return whether the storage at an address is in the host's memory.

        Args:
            address: The address. Storages that no operator made are on the host if `strangers_on_host` is set.
        """
        watch = self._watches.get(address)
        return self.strangers_on_host if watch is None else watch.host

    @contextmanager
    def owned_by(self, owner: int) -> Iterator[None]:
        """Count the events within the `with` block as those of one optimizer.

        Args:
            owner: The number of the optimizer.
        """
        before, self._owner = self._owner, owner
        try:
            yield
        finally:
            self._owner = before

    def entries(self, owner: int) -> list[Entry]:
        """Return the log without the events of other optimizers.

        Args:
            owner: The number of the optimizer.
        """
        pairs = zip(self._entries, self._owners, strict=True)
        return [entry for entry, whose in pairs if whose is None or whose == owner]

    def since(self, number: int) -> list[Entry]:
        """Return the log of all optimizers from an entry on.

        Args:
            number: The index of the first entry.
        """
        return self._entries[number:]

    def _died(self, watch: weakref.ref[torch.UntypedStorage]) -> None:
        assert isinstance(watch, _Watch)
        if self._watches.get(watch.address) is watch:
            del self._watches[watch.address]
        if not watch.host and watch.size:
            self._end(watch)

    def _end(self, watch: _Watch) -> None:
        if self._owner is not None and watch.owner is None:
            self.meddlers.add(self._owner)  # a storage that all optimizers share was freed in the step of one
        self._release(watch.address, watch.size, watch.owner)

    def _add(self, entry: Entry, owner: int | None) -> None:
        self._entries.append(entry)
        self._owners.append(owner)

    def _count(self, size: int) -> None:
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
