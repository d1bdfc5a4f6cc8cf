"""From the profiler's tree of events to the ordered stream of the event model.

An operator is taken at the level at which PyTorch's dispatcher offers it to a backend: `aten::linear` is a composition
(a `CompositeImplicitAutograd` kernel) and is looked into, `aten::addmm` is an operator, and what goes on inside it is
its own affair. Blocks that still live when the operator ends are what it returned.
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
        trees: roots of each session's events, sessions in order.
        device_type: whose allocations to yield; those of a mark's size are yielded of the CPU as well.
        loose: for each session, what happened outside of operators and is not in its tree.
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
        elif fields.scope == RecordScope.FUNCTION and not _is_composition(node.name):
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
def _is_composition(name: str) -> bool:
    """Whether the operator is written in terms of others, and dispatched to no backend itself.

    The profiler does not say which overload ran, so one with a kernel of its own decides for all; those that write
    into an argument (`out`) have other kernels and do not count.
    """
    namespace, _, operator = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), operator, None) if operator else None
    if packet is None:
        return True  # a user's range, or the engine's own: no operator
    overloads = [overload for overload in packet.overloads() if not overload.endswith("out")]
    qualified = [name if overload == "default" else f"{name}.{overload}" for overload in overloads]
    kernels = ("CPU", "CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    return not any(_has_kernel(each, key) for each in qualified for key in kernels)


def _has_kernel(qualified_name: str, dispatch_key: str) -> bool:
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(qualified_name, dispatch_key))
    except RuntimeError:  # an overload of TorchScript's, which the dispatcher does not have
        return False


def name_modules(entries: Iterable[Entry | ProfiledOperator]) -> list[Entry]:
    """Resolve the module of every operator, and take out the module marks.

    In the forward pass it is the innermost module that is running. In the backward pass it is the one whose forward
    made the autograd node: both carry the node's sequence number (-1 where there is none).
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
            # What builds a graph within the backward pass is a forward pass run again.
            recompute = in_backward and (bool(running) or entry.sequence >= 0)
            named.append(OperatorBegin(entry.operator, module, recompute))
        else:
            named.append(entry)
    return named
