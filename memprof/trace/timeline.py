"""Turns a trace into the timeline of its last step, which is thinned out but keeps every peak and phase start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from memprof.documents.timeline import Owner, PhaseStart, Timeline, fold_blocks
from memprof.trace.events import PhaseSpan, Trace

# Together these limits keep a run's timeline within about 50 KiB of JSON.
MOST_POINTS = 240
MOST_OWNERS = 80
MOST_CHANGES = 3000

_Key = tuple[str, str | None, str | None]
_Changes = dict[int, int]


def make_timeline(trace: Trace, reserved: Sequence[int] | None = None) -> Timeline:
    """Return the timeline of a trace's last step.

    Args:
        trace: the events of a trial, starting from an empty process.
        reserved: the bytes reserved after each event of the trace; None if they were not recorded.
    """
    spans = [span for span in trace.spans if span.step == trace.spans[-1].step]
    begin = spans[0].start
    before = sum(event.size for event in trace.events[:begin])
    allocated = list(accumulate((event.size for event in trace.events[begin:]), initial=before))
    curves = [allocated]
    if reserved is not None:
        curves.append([reserved[begin - 1] if begin else 0, *reserved[begin:]])
    chosen = _choose(curves, [span.start - begin for span in spans])
    return Timeline(
        step=spans[0].step,
        n_events=len(allocated) - 1,
        events=chosen,
        allocated_bytes=[allocated[index] for index in chosen],
        reserved_bytes=[curves[1][index] for index in chosen] if reserved is not None else None,
        phases=_phases(spans, begin),
        owners=_owners(_group_levels(trace, begin, chosen)),
    )


def _phases(spans: Iterable[PhaseSpan], begin: int) -> list[PhaseStart]:
    return [PhaseStart(phase=span.phase, event=span.start - begin) for span in spans]


def _choose(curves: Sequence[Sequence[int]], starts: Sequence[int]) -> list[int]:
    """Return the indices to keep.

    They are the two ends, the highest and the lowest point of every interval, and the peaks of the phases and curves.
    """
    last = len(curves[0]) - 1
    kept = {0, last, *starts}
    for curve in curves:
        kept.add(_highest(curve, 0, last))
        kept.update(_highest(curve, start, end) for start, end in zip(starts, [*starts[1:], last], strict=True))
    intervals = max(1, (MOST_POINTS - len(kept)) // 2)
    edges = sorted({last * number // intervals for number in range(intervals + 1)})
    for start, end in pairwise(edges):
        kept.add(_highest(curves[0], start, end))
        kept.add(min(range(start, end + 1), key=curves[0].__getitem__))
    return sorted(kept)


def _highest(curve: Sequence[int], start: int, end: int) -> int:
    return max(range(start, end + 1), key=curve.__getitem__)


def _group_levels(trace: Trace, begin: int, chosen: Sequence[int]) -> dict[_Key, _Changes]:
    """Return, by category, module and operator, the level at each chosen point where the level has changed."""
    names = fold_blocks(block.module for block in trace.blocks)
    keys: list[_Key] = [(block.category, names[block.module], block.operator) for block in trace.blocks]
    levels: defaultdict[_Key, int] = defaultdict(int)
    changes: defaultdict[_Key, _Changes] = defaultdict(dict)
    done = 0
    for point, index in enumerate(chosen):
        touched: dict[_Key, int] = {}
        for event in trace.events[done : begin + index]:
            key = keys[event.block]
            touched.setdefault(key, levels[key])
            levels[key] += event.size
        done = begin + index
        for key, level in touched.items():
            if levels[key] != level:
                changes[key][point] = levels[key]
    return dict(changes)


def _owners(changes: dict[_Key, _Changes]) -> list[Owner]:
    """Return the largest owners, and one more owner per category for the rest of that category."""
    largest = sorted(changes, key=lambda key: (-max(changes[key].values()), key))
    listed: list[_Key] = []
    changes_left = MOST_CHANGES
    for key in largest[:MOST_OWNERS]:
        if len(changes[key]) > changes_left:
            break
        changes_left -= len(changes[key])
        listed.append(key)
    rest: defaultdict[str, list[_Changes]] = defaultdict(list)
    for key in largest[len(listed) :]:
        rest[key[0]].append(changes[key])
    owners = [_owner(key, changes[key]) for key in listed]
    return owners + [_owner((category, None, None), _sum(parts)) for category, parts in sorted(rest.items())]


def _sum(parts: Iterable[_Changes]) -> _Changes:
    steps: defaultdict[int, int] = defaultdict(int)
    for changes in parts:
        level = 0
        for point, value in changes.items():
            steps[point] += value - level
            level = value
    points = sorted(steps)
    return dict(zip(points, accumulate(steps[point] for point in points), strict=True))


def _owner(key: _Key, changes: _Changes) -> Owner:
    category, module, operator = key
    return Owner(
        category=category,
        module=module,
        operator=operator,
        points=list(changes),
        levels_bytes=list(changes.values()),
    )
