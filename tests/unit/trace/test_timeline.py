from __future__ import annotations

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from memprof.documents.timeline import Timeline, fold_blocks
from memprof.trace.events import Block, Event, PhaseSpan, Trace
from memprof.trace.timeline import MOST_CHANGES, MOST_OWNERS, MOST_POINTS, make_timeline


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Blocks that are allocated and freed at random, over a build and two steps."""
    count = draw(st.integers(1, 60))
    names = st.sampled_from(["", "blocks.0.up", "blocks.1.up", "head"])
    trace = Trace(spans=[PhaseSpan(0, 0, "build")])
    waiting: list[int] = []
    for number in range(count):
        category = draw(st.sampled_from(["parameters", "activations", "temporaries"]))
        block = Block(draw(st.integers(1, 1000)), "forward", draw(st.sampled_from(["mm", "add"])), draw(names))
        block.category = category
        trace.blocks.append(block)
        trace.events.append(Event(number, block.size))
        waiting.append(number)
        if draw(st.booleans()):
            freed = waiting.pop(draw(st.integers(0, len(waiting) - 1)))
            trace.events.append(Event(freed, -trace.blocks[freed].size))
    cuts = sorted(draw(st.lists(st.integers(0, len(trace.events)), min_size=3, max_size=3)))
    phases = [(1, "forward"), (2, "forward"), (2, "backward")]
    trace.spans += [PhaseSpan(cut, *phase) for cut, phase in zip(cuts, phases, strict=True)]
    return trace


def oracle(trace: Trace, event: int) -> Counter[tuple[str, str, str]]:
    """The live bytes after so many events, counted from the beginning each time."""
    held: Counter[tuple[str, str, str]] = Counter()
    folded = {"": "", "blocks.0.up": "blocks.*.up", "blocks.1.up": "blocks.*.up", "head": "head"}
    for number, size in trace.events[:event]:
        block = trace.blocks[number]
        held[block.category, folded[block.module], block.operator] += size
    return +held


@settings(max_examples=200)
@given(traces())
def test_every_point_is_what_a_count_from_the_beginning_says(trace: Trace) -> None:
    timeline = make_timeline(trace)
    begin = trace.spans[2].start
    levels = {(o.category, o.module, o.operator): timeline.levels(o) for o in timeline.owners}
    for point, event in enumerate(timeline.events):
        expected = oracle(trace, begin + event)
        assert {key: at[point] for key, at in levels.items() if at[point]} == expected
        assert timeline.allocated_bytes[point] == expected.total()
    assert (timeline.events[0], timeline.events[-1]) == (0, len(trace.events) - begin)


def make_long(n_owners: int, n_events: int) -> Trace:
    trace = Trace(spans=[PhaseSpan(0, 1, "forward"), PhaseSpan(n_events // 2, 1, "backward")])
    for number in range(n_events // 2):
        name = f"m{number % n_owners}.x"
        size = 10**6 + number if number == n_events // 8 else number % 977 + 1
        trace.blocks.append(Block(size, "forward", "mm", name, category="activations"))
        trace.events += [Event(number, size), Event(number, -size)]
    return trace


def test_a_long_step_is_thinned_out_without_losing_its_peaks() -> None:
    trace = make_long(1000, 20_000)
    reserved = [0] * 7_777 + [5] + [2] * (len(trace.events) - 7_778)
    timeline = make_timeline(trace, reserved)
    assert len(timeline.events) <= MOST_POINTS + 2
    assert max(timeline.allocated_bytes) == 10**6 + 2500
    assert timeline.reserved_bytes is not None
    assert max(timeline.reserved_bytes) == 5
    assert {start.event for start in timeline.phases} <= set(timeline.events)
    assert max(timeline.allocated_bytes[timeline.events.index(10_000) :]) == 977  # of the backward phase


def test_owners_too_small_or_too_many_are_summed_up_by_category() -> None:
    timeline = make_timeline(make_long(1000, 20_000))
    assert len(timeline.owners) <= MOST_OWNERS + 1
    assert sum(len(owner.points) for owner in timeline.owners if owner.module) <= MOST_CHANGES
    assert timeline.owners[-1].module is None
    assert timeline.by_category() == {"activations": timeline.allocated_bytes}


def test_a_timeline_is_small_as_json_and_comes_back() -> None:
    timeline = make_timeline(make_long(60, 20_000))
    assert len(timeline.model_dump_json()) < 60_000
    assert Timeline.model_validate(json.loads(timeline.model_dump_json())) == timeline


def test_blocks_fold_but_a_last_number_stays() -> None:
    modules = ["model.layers.11.mlp.up", "model.layers.11", "layers.3", "stage2.0.conv1", "stage2.0", "stage2.1", ""]
    assert [fold_blocks(modules)[name] for name in modules] == [
        "model.layers.*.mlp.up",
        "model.layers.*",
        "layers.3",
        "stage2.*.conv1",
        "stage2.*",
        "stage2.1",
        "",
    ]
