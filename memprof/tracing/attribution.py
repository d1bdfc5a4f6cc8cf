"""From a stream of events and marks to a trace: who asked for each block, and what it holds.

The rules, in the words of `memprof.results.CATEGORIES`:

- parameters, buffers, gradients, inputs and optimizer state are known by address, from label marks;
- a tensor made in the forward pass that lives when the backward pass begins is an activation, and so is what the
  backward pass recomputes of the forward pass;
- other tensors, and scratch that a kernel takes and gives back, are temporaries;
- a block that no operator returned and that outlives the operator it was taken in is unattributed.

Of several ranks, what FSDP allocates within its range "FSDP::all_gather_copy_out" are parameters: those of a whole
group, as long as it is gathered. Within "FSDP::all_gather" and "FSDP::post_backward_reduce" it is communication, unless
it is labelled later on (a reduced gradient). The names are the same from PyTorch 2.8.0 to 2.15.0.

A Python number that is passed to an operator becomes a block of a few bytes outside of any operator: a temporary, or an
activation where the backward pass needs it.
"""

from __future__ import annotations

from collections.abc import Iterable

from memprof.tracing.events import (
    Allocation,
    Block,
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
_RANGES = {
    "FSDP::all_gather": "communication",
    "FSDP::all_gather_copy_out": "parameters",
    "FSDP::post_backward_reduce": "communication",
}


def build_trace(entries: Iterable[Entry]) -> Trace:
    """Return the trace of a stream that starts in an empty process."""
    builder = _TraceBuilder()
    for entry in entries:
        builder.feed(entry)
    return builder.trace


class _TraceBuilder:
    def __init__(self) -> None:
        self.trace = Trace(spans=[PhaseSpan(0, 0, "build")])
        self._live: dict[int, int] = {}  # address -> block
        self._operator: OperatorBegin | None = None
        self._scratch: set[int] = set()  # blocks taken within the current operator, by number
        self._forward: set[int] = set()  # tensors made in this step's forward pass, by number
        self._ranges: list[tuple[str, str]] = []  # category and module of the ranges that are running
        self._exchanged: set[int] = set()  # blocks taken within them, by number

    def feed(self, entry: Entry) -> None:
        if isinstance(entry, Allocation):
            self._allocate(entry)
        elif isinstance(entry, Free):
            self._free(entry.address)
        elif isinstance(entry, PhaseMark):
            self._begin_phase(entry)
        elif isinstance(entry, OperatorBegin):
            self._operator, self._scratch = entry, set()
            self.trace.operators.setdefault(self._phase, set()).add(entry.operator)
        elif isinstance(entry, OperatorEnd):
            self._end_operator(entry)
        elif isinstance(entry, LabelMark):
            self._label(entry)
        elif isinstance(entry, RangeMark):
            self._mark_range(entry)

    @property
    def _phase(self) -> str:
        return self.trace.spans[-1].phase

    def _allocate(self, allocation: Allocation) -> None:
        number = len(self.trace.blocks)
        block = Block(allocation.size, self._phase, stream=allocation.stream, range=allocation.range)
        if self._operator is not None:
            block.operator, block.module = self._operator.operator, self._operator.module
            self._scratch.add(number)
        elif allocation.size <= _LARGEST_NUMBER:
            block.category = "temporaries"
            self._note_forward(number)
        if self._ranges:
            block.category, block.module = self._ranges[-1]
            block.tensor = self._operator is None  # a storage that is resized
            self._exchanged.add(number)
        self.trace.blocks.append(block)
        self.trace.events.append(Event(number, allocation.size))
        self._live[allocation.address] = number

    def _free(self, address: int) -> None:
        number = self._live.pop(address, None)
        if number is None:  # it lived before the recording began
            return
        block = self.trace.blocks[number]
        self.trace.events.append(Event(number, -block.size))
        if number in self._scratch and block.category != "communication":
            block.category = "temporaries"

    def _end_operator(self, end: OperatorEnd) -> None:
        operator, self._operator = self._operator, None
        for address in end.outputs:
            number = self._live.get(address)
            if number in self._scratch:
                block = self.trace.blocks[number]
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

    def _note_forward(self, number: int) -> None:
        if self._phase == "forward":
            self._forward.add(number)

    def _begin_phase(self, mark: PhaseMark) -> None:
        if mark.phase == "backward":
            living = set(self._live.values())
            for number in self._forward & living:
                self.trace.blocks[number].category = "activations"
            self._forward.clear()
        self.trace.spans.append(PhaseSpan(len(self.trace.events), mark.step, mark.phase))

    def _label(self, mark: LabelMark) -> None:
        for address, module in mark.modules.items():
            number = self._live.get(address)
            if number is not None:
                block = self.trace.blocks[number]
                block.tensor, block.category, block.module = True, mark.category, module
