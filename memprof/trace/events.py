"""The event model: the ordered allocations and frees of a trial, each block tagged with who asked for it.

A source (the profiler, fake tensors) delivers one ordered stream of `Allocation`, `Free` and marks. The marks
say what the training step was doing in between; `memprof.trace.attribution` turns the stream into a `Trace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class SizeLimits(NamedTuple):
    """Between which sizes a block really lies whose size is not known; blocks of one `source` are off together.

    `source` names what decides the size, for example `cuDNN convolution workspaces`.
    """

    low: int
    high: int
    source: str


class Allocation(NamedTuple):
    """The allocator handed out `size` bytes at `address`; `range` is for a predicted size that is an estimate."""

    address: int
    size: int
    stream: int = 0
    range: SizeLimits | None = None


class Free(NamedTuple):
    """The block at `address` was given back."""

    address: int


class PhaseMark(NamedTuple):
    """From here on, `phase` of training step `step` is running; step 0 is the build."""

    step: int
    phase: str


class OperatorBegin(NamedTuple):
    """An operator was dispatched.

    `module` is the dotted name of the module it runs for, "" outside the model; `recompute` says that the backward
    pass is running a module's forward again (activation checkpointing).
    """

    operator: str
    module: str
    recompute: bool = False


class OperatorEnd(NamedTuple):
    """The operator returned tensors with storages at these addresses."""

    outputs: list[int]


class ModuleMark(NamedTuple):
    """The forward of a module begins (`enters`) or ends."""

    module: str
    enters: bool


class RangeMark(NamedTuple):
    """A named range of FSDP's own work (`torch.profiler.record_function`) begins (`enters`) or ends."""

    name: str
    enters: bool


class ProfiledOperator(NamedTuple):
    """An operator as the profiler saw it, whose module is not yet known.

    `sequence` is the number of the autograd node that it makes, if it makes one; `node_sequence` that of the node
    that it runs for in the backward pass, None outside.
    """

    operator: str
    sequence: int
    node_sequence: int | None


class LabelMark(NamedTuple):
    """The live blocks at these addresses hold `category`; values are module names.

    Without a category they are tensors, of whatever kind they were taken for.
    """

    category: str
    modules: Mapping[int, str]


Mark = PhaseMark | ModuleMark | RangeMark | OperatorBegin | OperatorEnd | LabelMark
Entry = Allocation | Free | Mark


@dataclass(slots=True)
class Block:
    """One allocation from its birth to its end.

    Attributes:
        size: bytes asked of the allocator.
        phase: in which it was allocated.
        operator: that allocated it, "" where none was seen.
        module: that the operator ran for, "" outside the model.
        tensor: an operator returned it, so the training step can see it; False for scratch inside a kernel.
        category: one of `memprof.documents.comparison.CATEGORIES`.
        stream: the CUDA stream it was allocated on.
        range: between which sizes it lies, where `size` is an estimate.
    """

    size: int
    phase: str
    operator: str = ""
    module: str = ""
    tensor: bool = False
    category: str = "unattributed"
    stream: int = 0
    range: SizeLimits | None = None


class Event(NamedTuple):
    """Block number `block` is allocated (`size` > 0) or freed (`size` < 0)."""

    block: int
    size: int


@dataclass(slots=True)
class PhaseSpan:
    """The events `[start, next span's start)` belong to `phase` of `step`."""

    start: int
    step: int
    phase: str


@dataclass(slots=True)
class Trace:
    """The ordered events of a trial from an empty process on, the phases they fall into, and the operators of each."""

    blocks: list[Block] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    spans: list[PhaseSpan] = field(default_factory=list)
    operators: dict[str, set[str]] = field(default_factory=dict)
