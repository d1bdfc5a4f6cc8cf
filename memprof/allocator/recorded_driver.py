"""A driver that answers as a recorded one did, so that a recording can be replayed on any machine."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

TAKEN = ("segment_alloc", "segment_map")
GIVEN_BACK = ("segment_free", "segment_unmap")
_INVENTED_FROM = 2**60
_INVENTED_STEP = 2**44


class SegmentEvent(NamedTuple):
    """The driver gave or took a segment, or some of its pages.

    Attributes:
        action: the name of the action in PyTorch's recording, for example `segment_alloc`.
        address: the address of the memory.
        size: its size in bytes.
    """

    action: str
    address: int
    size: int


@dataclass
class _Range:
    """A virtual range. The first pages that are mapped in it show its address in the recording."""

    start: int
    size: int
    real_start: int | None = None


class RecordedDriver:
    """A driver that runs short of memory when the recording gives segments back.

    Attributes:
        simulated: what the model did during the current request.
    """

    def __init__(self) -> None:
        self.simulated: list[SegmentEvent] = []
        self._recorded: deque[SegmentEvent] = deque()
        self._in_the_end_short = False
        self._ranges: list[_Range] = []
        self._invented = _INVENTED_FROM

    def expect(self, recorded: list[SegmentEvent], in_the_end_short: bool) -> None:
        """Set what was recorded during the next request.

        Args:
            recorded: the segment events, in order.
            in_the_end_short: whether the request failed after them.
        """
        self.simulated = []
        self._recorded = deque(recorded)
        self._in_the_end_short = in_the_end_short

    def real(self, address: int) -> int:
        """Return the address in the recording that corresponds to an address of the model.

        Args:
            address: an address that this driver handed out.
        """
        for one in self._ranges:
            if one.start <= address < one.start + one.size and one.real_start is not None:
                return address - one.start + one.real_start
        return address

    def allocate(self, size: int, stream: int) -> int | None:
        """See `Driver`."""
        if self._short():
            return None
        address = self._recorded.popleft().address if self._recorded else self._invent()
        self.simulated.append(SegmentEvent("segment_alloc", address, size))
        return address

    def free(self, address: int, size: int) -> None:
        """See `Driver`."""
        self._give_back(SegmentEvent("segment_free", address, size))

    def reserve(self, size: int, stream: int) -> int:
        """See `Driver`."""
        self._ranges.append(_Range(self._invent(), size))
        return self._ranges[-1].start

    def map(self, address: int, size: int) -> bool:
        """See `Driver`."""
        if self._short():
            return False
        if self._recorded:
            self._learn(address, self._recorded.popleft().address)
        self.simulated.append(SegmentEvent("segment_map", self.real(address), size))
        return True

    def unmap(self, address: int, size: int) -> None:
        """See `Driver`."""
        self._give_back(SegmentEvent("segment_unmap", self.real(address), size))

    def _learn(self, address: int, recorded: int) -> None:
        for one in self._ranges:
            if one.start <= address < one.start + one.size and one.real_start is None:
                one.real_start = recorded - (address - one.start)

    def _short(self) -> bool:
        return self._recorded[0].action in GIVEN_BACK if self._recorded else self._in_the_end_short

    def _give_back(self, event: SegmentEvent) -> None:
        self.simulated.append(event)
        if event in self._recorded:
            self._recorded.remove(event)

    def _invent(self) -> int:
        self._invented += _INVENTED_STEP
        return self._invented
