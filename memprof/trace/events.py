"""The event model: the ordered allocations and frees of a trial, each block tagged with who asked for it.

A source (the profiler or fake tensors) delivers one ordered stream of `Allocation`, `Free` and marks. The marks say
what the training step was doing in between. `memprof.trace.attribution` turns the stream into a `Trace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class SizeLimits(NamedTuple):
    """The limits of a block's real size if the exact size is not known.

    The sizes of all blocks with the same `source` err in the same direction.

    Attributes:
        low: the smallest possible size in bytes.
        high: the largest possible size in bytes.
        source: what decides the size, for example `cuDNN convolution workspaces`.
    """

    low: int
    high: int
    source: str


class Allocation(NamedTuple):
    """The allocator handed out a block.

    Attributes:
        address: the address of the block.
        size: its size in bytes.
        stream: the CUDA stream of the request.
        range: the limits of the size if it is predicted and only an estimate.
    """

    address: int
    size: int
    stream: int = 0
    range: SizeLimits | None = None


class Free(NamedTuple):
    """The block at an address was given back.

    Attributes:
        address: the address of the block.
    """

    address: int


class PhaseMark(NamedTuple):
    """A phase of a training step begins.

    Attributes:
        step: the number of the step; 0 is the build.
        phase: the name of the phase.
    """

    step: int
    phase: str


class OperatorBegin(NamedTuple):
    """An operator was dispatched.

    Attributes:
        operator: the name of the operator.
        module: the dotted name of the module for which it runs; "" outside the model.
        recompute: whether the backward pass is running a module's forward again (activation checkpointing).
    """

    operator: str
    module: str
    recompute: bool = False


class OperatorEnd(NamedTuple):
    """The operator returned.

    Attributes:
        outputs: the addresses of the storages of the tensors that it returned.
    """

    outputs: list[int]


class ModuleMark(NamedTuple):
    """The forward of a module begins or ends.

    Attributes:
        module: the dotted name of the module.
        enters: whether the forward begins.
    """

    module: str
    enters: bool


class RangeMark(NamedTuple):
    """A named range of FSDP's own work (`torch.profiler.record_function`) begins or ends.

    Attributes:
        name: the name of the range.
        enters: whether the range begins.
    """

    name: str
    enters: bool


class ProfiledOperator(NamedTuple):
    """An operator as the profiler recorded it, whose module is not yet known.

    Attributes:
        operator: the name of the operator.
        sequence: the number of the autograd node that the operator makes, if it makes one.
        node_sequence: the number of the autograd node for which it runs in the backward pass; None outside of it.
    """

    operator: str
    sequence: int
    node_sequence: int | None


class LabelMark(NamedTuple):
    """The live blocks at some addresses hold a known category.

    Attributes:
        category: one of `memprof.documents.comparison.CATEGORIES`; empty where it is only known that they are tensors.
        modules: the dotted name of the module for each address.
    """

    category: str
    modules: Mapping[int, str]


class CacheMark(NamedTuple):
    """The caching allocator gave what nobody used back to the driver."""


Mark = PhaseMark | ModuleMark | RangeMark | OperatorBegin | OperatorEnd | LabelMark | CacheMark
Entry = Allocation | Free | Mark


@dataclass(slots=True)
class Block:
    """One allocation, from the request to the free.

    Attributes:
        size: the bytes requested from the allocator.
        phase: the phase in which it was allocated.
        operator: the operator that allocated it; "" if none was seen.
        module: the module for which the operator ran; "" outside the model.
        tensor: whether an operator returned it, so that the training step can see it. It is False for scratch memory
            inside a kernel.
        category: one of `memprof.documents.comparison.CATEGORIES`.
        stream: the CUDA stream on which it was allocated.
        range: the limits of the size if `size` is an estimate.
    """

    size: int
    phase: str
    operator: str = ""
    module: str = ""
    tensor: bool = False
    category: str = "unattributed"
    stream: int = 0
    range: SizeLimits | None = None


CACHE_EMPTIED = -1


class Event(NamedTuple):
    """A block is allocated or freed; or, with `CACHE_EMPTIED` in its place, the allocator gives its cache back.

    Attributes:
        block: the number of the block.
        size: its size in bytes, positive for an allocation and negative for a free; 0 for an emptied cache.
    """

    block: int
    size: int


@dataclass(slots=True)
class PhaseSpan:
    """The events of one phase, from `start` up to the start of the next span.

    Attributes:
        start: the index of the first event.
        step: the number of the training step; 0 is the build.
        phase: the name of the phase.
    """

    start: int
    step: int
    phase: str


@dataclass(slots=True)
class Trace:
    """The ordered events of a trial, starting from an empty process.

    Attributes:
        blocks: the blocks, by number.
        events: the allocations and frees, in order.
        spans: the phases into which the events fall, in order.
        operators: for each phase, the names of the operators that ran in it.
    """

    blocks: list[Block] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    spans: list[PhaseSpan] = field(default_factory=list)
    operators: dict[str, set[str]] = field(default_factory=dict)
