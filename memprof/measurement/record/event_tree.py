"""Turns the profiler's tree of events into an ordered stream of events.

An operator is recorded at the level at which PyTorch's dispatcher offers it to a backend. `aten::linear` is a
composition (a `CompositeImplicitAutograd` kernel), so the operators inside it are recorded. `aten::addmm` is an
operator, so what runs inside it is not. Blocks that are still alive when an operator ends are its outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

import torch
from torch._C._profiler import RecordScope, _ExtraFields_Allocation, _ExtraFields_TorchOp

from memprof.measurement.record.cuda_events import Loose
from memprof.measurement.record.mark_blocks import MARK_BYTES
from memprof.trace.events import (
    Allocation,
    Entry,
    Free,
    ModuleMark,
    OperatorBegin,
    OperatorEnd,
    ProfiledOperator,
    RangeMark,
)

_NODE_PREFIX = "autograd::engine::evaluate_function"
_RANGE_PREFIX = "FSDP::"


def flatten(
    trees: Sequence[Sequence[Any]], device_type: str, loose: Sequence[Sequence[Loose]] = ()
) -> Iterator[Entry | ProfiledOperator]:
    """Yield the allocations, frees and operators of the profiler's trees in order.

    Args:
        trees: The root events of each session, with the sessions in order.
        device_type: The type of device whose allocations to yield. Those of a mark's size are always yielded.
        loose: For each session, the events outside of operators, which its tree misses.
    """
    for index, roots in enumerate(trees):
        timed: list[tuple[int, Any]] = [(node.start_time_ns, node) for node in roots]
        timed += loose[index] if loose else ()
        for _, item in sorted(timed, key=itemgetter(0)):
            if isinstance(item, (Allocation, Free)):
                yield item
            else:
                yield from _visit(item, device_type, node_sequence=None)


def _visit(node: Any, device_type: str, node_sequence: int | None) -> Iterator[Entry | ProfiledOperator]:
    fields = node.extra_fields
    if isinstance(fields, _ExtraFields_Allocation):
        yield from _memory(fields, device_type)
        return
    if isinstance(fields, _ExtraFields_TorchOp):
        if fields.scope == RecordScope.BACKWARD_FUNCTION or node.name.startswith(_NODE_PREFIX):
            node_sequence = fields.sequence_number
        elif fields.scope == RecordScope.FUNCTION and not is_composition(node.name):
            yield from _operator(node, device_type, node_sequence)
            return
    in_range = node.name.startswith(_RANGE_PREFIX)
    if in_range:
        yield RangeMark(node.name, enters=True)
    for child in node.children:
        yield from _visit(child, device_type, node_sequence)
    if in_range:
        yield RangeMark(node.name, enters=False)


def _operator(node: Any, device_type: str, node_sequence: int | None) -> Iterator[Entry | ProfiledOperator]:
    yield ProfiledOperator(node.name, node.extra_fields.sequence_number, node_sequence)
    living: dict[int, None] = {}
    for fields in _allocations(node):
        for entry in _memory(fields, device_type):
            if isinstance(entry, Allocation):
                living[entry.address] = None
            else:
                living.pop(entry.address, None)
            yield entry
    yield OperatorEnd(list(living))


def _allocations(node: Any) -> Iterator[Any]:
    for child in node.children:
        if isinstance(child.extra_fields, _ExtraFields_Allocation):
            yield child.extra_fields
        else:
            yield from _allocations(child)


def _memory(fields: Any, device_type: str) -> Iterator[Allocation | Free]:
    size = fields.alloc_size
    if fields.device.type == device_type or abs(size) == MARK_BYTES:
        yield Allocation(fields.ptr, size) if size > 0 else Free(fields.ptr)


@cache
def is_composition(name: str) -> bool:
    """Return whether an operator is composed of others and has no kernel of its own.

    The profiler does not say which overload ran, so an overload with a kernel of its own decides for all. Overloads
    that write into an argument (`out`) have other kernels and do not count.

    Args:
        name: The name of an event of the profiler, such as `aten::linear`.
    """
    namespace, _, operator = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), operator, None) if operator else None
    if packet is None:
        return True  # it is no operator but a named range of the user or of the autograd engine
    overloads = [overload for overload in packet.overloads() if not overload.endswith("out")]
    qualified = [name if overload == "default" else f"{name}.{overload}" for overload in overloads]
    kernels = ("CPU", "CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    return not any(_has_kernel(each, key) for each in qualified for key in kernels)


def _has_kernel(qualified_name: str, dispatch_key: str) -> bool:
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(qualified_name, dispatch_key))
    except RuntimeError:  # the dispatcher does not have overloads of TorchScript
        return False


def name_modules(entries: Iterable[Entry | ProfiledOperator]) -> list[Entry]:
    """Find the module of every operator, and remove the module marks.

    In the forward pass it is the innermost module that runs. In the backward pass it is the module whose forward made
    the autograd node; operators of both passes carry the sequence number of the node (-1 if there is none).

    Args:
        entries: The events in order.

    Returns:
        The events with the module of each operator.
    """
    named: list[Entry] = []
    running: list[str] = []
    owner: dict[int | None, str] = {}
    for entry in entries:
        if isinstance(entry, ModuleMark):
            running.append(entry.module) if entry.enters else running.pop()
        elif isinstance(entry, ProfiledOperator):
            in_backward = entry.node_sequence is not None
            module = running[-1] if running else owner.get(entry.node_sequence, "")
            if entry.sequence >= 0:
                owner[entry.sequence] = module
            # An operator that builds a graph within the backward pass belongs to a forward pass that is run again.
            recompute = in_backward and (bool(running) or entry.sequence >= 0)
            named.append(OperatorBegin(entry.operator, module, recompute))
        else:
            named.append(entry)
    return named
