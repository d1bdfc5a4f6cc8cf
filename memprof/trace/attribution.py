"""Turns a stream of events and marks into a trace: who asked for each block, and what the block holds.

The rules use the words of `memprof.documents.comparison.CATEGORIES`:

- Parameters, buffers, gradients, inputs and optimizer state are known by their address, from label marks.
- A tensor that is made in the forward pass and is alive when the backward pass begins is an activation. So is what the
  backward pass recomputes of the forward pass.
- Other tensors are temporaries, and so is the scratch memory that a kernel takes and gives back.
- While operators are followed, a block that is made outside of every operator counts as a tensor, like one that an
  operator returns, because its maker bypassed the dispatcher. Examples are a random state that checkpointing keeps, a
  copy of a storage, and what compiled code makes.
- A block is unattributed if no operator returned it and it outlives the operator in which it was taken. So is a block
  without a label that existed before operators were followed.

With several ranks, what FSDP allocates within its range "FSDP::all_gather_copy_out" is parameters: those of a whole
group, for as long as it is gathered. What it allocates within "FSDP::all_gather" and "FSDP::post_backward_reduce" is
communication, unless it is labelled later on (a reduced gradient). What the last range frees and has not made is the
gradients that it reduces. The names of the ranges are the same from PyTorch 2.8.0 to 2.15.0.

A Python number that is passed to an operator becomes a block of a few bytes outside of any operator. The training step
cannot see it as a tensor. It is a temporary, or an activation if the backward pass needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from memprof.trace.events import (
    CACHE_EMPTIED,
    Allocation,
    Block,
    CacheMark,
    Entry,
    Event,
    Free,
    LabelMark,
    OperatorBegin,
    OperatorEnd,
    PhaseMark,
    PhaseSpan,
    RangeMark,
    Trace,
)

_LARGEST_NUMBER = 16  # bytes of a complex128
_REDUCTION = "FSDP::post_backward_reduce"
_RANGES = {
    "FSDP::all_gather": "communication",
    "FSDP::all_gather_copy_out": "parameters",
    _REDUCTION: "communication",
}


def build_trace(entries: Iterable[Entry]) -> Trace:
    """Return the trace of a stream of events and marks.

    Args:
        entries: the stream, which starts in an empty process.
    """
    builder = TraceBuilder()
    builder.take(entries)
    return builder.trace


class TraceBuilder:
    """Builds a trace from a stream that starts in an empty process and arrives piece by piece.

    Attributes:
        trace: the trace of the stream so far.
    """

    def __init__(self) -> None:
        self.trace = Trace(spans=[PhaseSpan(0, 0, "build")])
        self._blocks, self._events, self._operators = self.trace.blocks, self.trace.events, self.trace.operators
        self._phase = "build"
        self._live: dict[int, int] = {}  # address -> block
        self._operator: OperatorBegin | None = None
        self._scratch: set[int] = set()  # blocks taken within the current operator, by number
        self._forward: set[int] = set()  # tensors made in this step's forward pass, by number
        self._ranges: list[tuple[str, str]] = []  # category and module of the ranges that are running
        self._exchanged: set[int] = set()  # blocks taken within them, by number
        self._reducing = False

    def take(self, entries: Iterable[Entry]) -> None:
        """Add the next piece of the stream to the trace.

        Args:
            entries: the events and marks, in order.
        """
        takers = self._takers()
        for entry in entries:
            take = takers.get(type(entry))
            if take is not None:
                take(entry)

    def forget(self) -> None:
        """Drop the past of the trace, but keep the blocks that are alive.

        The trace then looks as if the build had allocated these blocks one after the other. The phase that is running
        continues at the present level. Blocks that were freed and the spans of phases that have ended are removed.
        """
        living = sorted(self._live.values())
        renumbered = {number: index for index, number in enumerate(living)}
        self._blocks[:] = [self._blocks[number] for number in living]
        self._events[:] = [Event(index, block.size) for index, block in enumerate(self._blocks)]
        last = self.trace.spans[-1]
        self.trace.spans = [PhaseSpan(0, 0, "build"), PhaseSpan(len(self._events), last.step, last.phase)]
        self._live = {address: renumbered[number] for address, number in self._live.items()}
        self._scratch, self._forward, self._exchanged = (
            {renumbered[number] for number in numbers & renumbered.keys()}
            for numbers in (self._scratch, self._forward, self._exchanged)
        )

    def _takers(self) -> Mapping[type[Any], Callable[[Any], None]]:
        """Return the function that handles each kind of entry. Other kinds say nothing about blocks."""
        return {
            Allocation: self._allocate,
            Free: self._free,
            PhaseMark: self._begin_phase,
            OperatorBegin: self._begin_operator,
            OperatorEnd: self._end_operator,
            LabelMark: self._label,
            RangeMark: self._mark_range,
            CacheMark: lambda mark: self._events.append(Event(CACHE_EMPTIED, 0)),
        }

    def _begin_operator(self, begin: OperatorBegin) -> None:
        self._operator, self._scratch = begin, set()
        self._operators.setdefault(self._phase, set()).add(begin.operator)

    def _allocate(self, allocation: Allocation) -> None:
        number, operator = len(self._blocks), self._operator
        block = Block(allocation.size, self._phase, stream=allocation.stream, range=allocation.range)
        if operator is not None:
            block.operator, block.module = operator.operator, operator.module
            self._scratch.add(number)
        elif not self._ranges and (self._operators or allocation.size <= _LARGEST_NUMBER):
            block.category, block.tensor = "temporaries", allocation.size > _LARGEST_NUMBER
            self._note_forward(number)
        if self._ranges:
            block.category, block.module = self._ranges[-1]
            block.tensor = operator is None  # outside of operators, only a storage that is resized is allocated here
            self._exchanged.add(number)
        self._blocks.append(block)
        self._events.append(Event(number, allocation.size))
        self._live[allocation.address] = number

    def _free(self, free: Free) -> None:
        number = self._live.pop(free.address, None)
        if number is None:  # it lived before the recording began
            return
        block = self._blocks[number]
        self._events.append(Event(number, -block.size))
        if number in self._scratch and block.category != "communication":
            block.category = "temporaries"
        elif block.category == "temporaries" and self._reducing and number not in self._exchanged:
            block.category = "gradients"

    def _end_operator(self, end: OperatorEnd) -> None:
        operator, self._operator = self._operator, None
        for address in end.outputs:
            number = self._live.get(address)
            if number in self._scratch:
                block = self._blocks[number]
                block.tensor = True
                if number not in self._exchanged:
                    block.category = "activations" if operator and operator.recompute else "temporaries"
                    self._note_forward(number)
        self._scratch = set()

    def _mark_range(self, mark: RangeMark) -> None:
        name, _, module = mark.name.partition(" ")
        if name in _RANGES and mark.enters:
            self._ranges.append((_RANGES[name], module.strip("()")))
        elif name in _RANGES:
            self._ranges.pop()
        if name == _REDUCTION:
            self._reducing = mark.enters

    def _note_forward(self, number: int) -> None:
        if self._phase == "forward":
            self._forward.add(number)

    def _begin_phase(self, mark: PhaseMark) -> None:
        if mark.phase == "backward":
            living = set(self._live.values())
            for number in self._forward & living:
                self._blocks[number].category = "activations"
            self._forward.clear()
        self._phase = mark.phase
        self.trace.spans.append(PhaseSpan(len(self._events), mark.step, mark.phase))

    def _label(self, mark: LabelMark) -> None:
        for address, module in mark.modules.items():
            number = self._live.get(address)
            if number is not None:
                block = self._blocks[number]
                block.tensor = True
                if mark.category:
                    block.category, block.module = mark.category, module
                elif block.category == "unattributed":
                    block.category = "temporaries"


def label_workspaces(trace: Trace, requested: Trace, size: int | None) -> None:
    """Label the workspaces that libraries keep.

    These are the unattributed blocks of a workspace's size that are never given back.

    Args:
        trace: the trace whose blocks are labelled.
        requested: the same trace with the sizes that were requested.
        size: the bytes of a workspace; None if there is none.
    """
    for number in _kept(requested, {size}):
        if trace.blocks[number].category == "unattributed":
            trace.blocks[number].category = "workspace"


def label_buckets(trace: Trace, requested: Trace, sizes: Collection[int]) -> None:
    """Label the buckets in which DDP's reducer keeps gradients for the other ranks.

    The reducer is written in C++, so no operator returns its buckets. They are the blocks of a bucket's size that are
    never given back and belong to nobody else.

    Args:
        trace: the trace whose blocks are labelled.
        requested: the same trace with the sizes that were requested. Its blocks are labelled too.
        sizes: the bytes of the buckets.
    """
    for number in _kept(requested, sizes):
        for block in (trace.blocks[number], requested.blocks[number]):
            if block.category in ("unattributed", "temporaries", "activations"):
                block.category, block.module, block.tensor = "communication", "", True


def _kept(requested: Trace, sizes: Collection[int | None]) -> list[int]:
    """Return the numbers of the blocks that have one of the sizes and are never given back."""
    if not any(sizes):
        return []
    freed = {number for number, change in requested.events if change < 0}
    blocks = enumerate(requested.blocks)
    return [number for number, block in blocks if block.size in sizes and number not in freed]
