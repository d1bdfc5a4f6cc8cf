"""The record of the steps is reduced as it comes; the figures are those of the whole record, computed the slow way."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memprof.allocator.settings import parse_alloc_conf
from memprof.documents.comparison import Peak, Run
from memprof.documents.jobs import Outcome, Trial
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.export import trace_paths
from memprof.measurement import meter as meters
from memprof.measurement.meter import Meter, Reading, attributed_breakdown, repeatability_note, tensor_peaks
from memprof.measurement.record.check_history import HistorySummary
from memprof.measurement.record.cuda_events import as_requested
from memprof.measurement.trial import run_trial
from memprof.trace.attribution import TraceBuilder, build_trace
from memprof.trace.events import Allocation, Entry, Free, PhaseMark, Trace
from memprof.trace.peaks import TrainingPeaks, holdings_at, span_peaks, step_levels
from memprof.trace.timeline import make_timeline
from memprof.workers.launcher import Launcher
from tests.children import run
from tests.data.allocator.programs import CAPACITY, HERE
from tests.data.allocator.record import unpack
from tests.property.test_trace import streams
from tests.unit.measurement.test_cuda_history import rounded

STEPS = 7
MLP = WorkloadSpec(model="mlp", knobs={"d_model": 32})
GPT2 = WorkloadSpec(model="gpt2", knobs={"n_layers": 2, "d_model": 32, "n_heads": 2, "seq_len": 16, "vocab_size": 50})
CASES: dict[str, tuple[WorkloadSpec, str, dict[str, Any]]] = {
    "plain": (MLP, "adam", {}),
    "state made late": (MLP, "sm3,momentum=0.9", {"warmup": 0}),
    "in micro-batches": (MLP, "sgd,momentum=0.9", {"accumulate": 3, "clip_grad": 1.0}),
    "zeroed at the start": (GPT2, "adamw,foreach=true", {"zero_grad": "start"}),
    "checkpointed": (GPT2, "adafactor", {"checkpoint_activations": True}),
    "in bfloat16": (GPT2, "sgd", {"precision": "amp-bf16"}),
    "stepped in the backward pass": (GPT2, "adam", {"step_in_backward": True}),
}


class Watched(Meter):
    """A meter that keeps what its recorder said, for a slow account of it."""

    last: Watched

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pieces: list[list[Entry]] = []
        Watched.last = self

    def take_entries(self, entries: list[Entry]) -> int:
        self.pieces.append(entries)
        return super().take_entries(entries)

    def finish(self, *arguments: Any) -> Reading:
        self.reading = super().finish(*arguments)
        return self.reading


def slow_figures(trace: Trace, attributed: bool) -> dict[str, Any]:
    """Everything that a reading says of a trace that has every block and event, each from its definition."""
    spans = [span for span in span_peaks(trace) if span.step > 0]
    top = max(spans, key=lambda span: span.peak_bytes)
    phases = {phase: [span for span in spans if span.phase == phase] for phase in dict.fromkeys(s.phase for s in spans)}
    steps = [[s.peak_bytes for s in spans if s.step == number] for number in sorted({s.step for s in spans})]
    highest = {phase: max(span.peak_bytes for span in of_phase) for phase, of_phase in phases.items()}
    return {
        "peak": (top.peak_bytes, top.phase, top.step),
        "phases": list(highest.items()),
        "step_peaks": [max(peaks) for peaks in steps],
        "breakdown": attributed_breakdown(trace) if attributed else None,
        "levels": {p: [*levels, highest[p]] for p, levels in step_levels(trace, spans[-1].step).items()},
        "operators": trace.operators,
        "timeline": make_timeline(trace) if attributed else None,
        "tensors": tensor_peaks(trace, spans[-1].step) if attributed else {},
        "notes": repeatability_note([max(peaks) for peaks in steps]),
    }


def figures(reading: Reading) -> dict[str, Any]:
    peak = reading.peak
    tensors = {name: phase.tensor_bytes for name, phase in reading.phases.items() if phase.tensor_bytes is not None}
    return {
        "peak": (peak.allocated_bytes, peak.phase, peak.step),
        "phases": [(name, phase.allocated_bytes) for name, phase in reading.phases.items()],
        "step_peaks": reading.step_peaks,
        "breakdown": reading.breakdown,
        "levels": reading.levels,
        "operators": reading.operators,
        "timeline": reading.timeline,
        "tensors": tensors,
        "notes": [note for note in reading.notes if note.startswith("Measured again")],
    }


def trial(case: str, **options: Any) -> Trial:
    workload, optimizer, recipe = CASES[case]
    whole = {"workload": workload, "optimizer": parse_optimizer(optimizer), "device": "cpu", "batch_size": 3}
    return Trial(**{**whole, **options, "recipe": Recipe(**{"steps": STEPS, **recipe, **options.get("recipe", {})})})


def exact(run: Run) -> Run:
    """Leave out what differs from run to run: times, the process, and in which order autocast's cache frees weights."""
    assert run.peak is not None
    assert run.steps is not None
    ranks = [one.model_copy(update={"peak": _without_process(one.peak)}) for one in run.ranks]
    steps = run.steps.model_copy(update={"seconds": []})
    return run.model_copy(update={"peak": _without_process(run.peak), "ranks": ranks, "timeline": None, "steps": steps})


def _without_process(peak: Peak) -> Peak:
    return peak.model_copy(update={"process_bytes": None})


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    def train(one: Trial, every: int, events: int = 1) -> Outcome:
        monkeypatch.setattr(meters, "_STEPS_AT_FIRST", every)
        monkeypatch.setattr(meters, "_EVENTS", events)
        monkeypatch.setattr("memprof.measurement.trial.Meter", Watched)
        return run_trial(one, lambda step: None)

    return train


@pytest.mark.parametrize("purpose", ["measure", "fit"])
@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_the_whole_record(train: Callable[..., Outcome], case: str, purpose: str) -> None:
    one = trial(case, purpose=purpose)
    done = train(one, every=1)
    watched = Watched.last
    steps = one.recipe.warmup + one.recipe.steps
    assert len(watched.pieces) == steps  # the build and the first step, each of the others, and what came after
    everything = build_trace([entry for piece in watched.pieces for entry in piece])
    assert figures(watched.reading) == slow_figures(everything, purpose == "measure")
    assert len(watched.reading.trace.events) < len(everything.events) / 2
    # Nothing was lost between the pieces: a record in one piece says the same.
    unbroken = train(one, every=1000)
    assert len(Watched.last.pieces) == 1
    assert (exact(done.run), done.levels) == (exact(unbroken.run), unbroken.levels)


def test_the_record_is_reduced_when_it_is_long_and_not_before(train: Callable[..., Outcome]) -> None:
    train(trial("plain", recipe={"steps": 3}), every=4)
    assert len(Watched.last.pieces) == 1
    train(trial("plain", recipe={"steps": 39}), every=4, events=1000)
    first, *others, _ = Watched.last.pieces
    assert sum(isinstance(entry, PhaseMark) and entry.phase == "forward" for entry in first) == 4
    assert 5 < len(others) < 20
    assert all(300 < len(piece) < 1200 for piece in others)


def test_an_exported_trace_has_every_step(train: Callable[..., Outcome], tmp_path: Path) -> None:
    done = train(trial("plain", trace_folder=str(tmp_path)), every=1)
    assert len(Watched.last.pieces) == 1
    spans = json.loads(trace_paths(tmp_path, "adam")[1].read_text())["traceEvents"]
    steps = {span["args"]["step"] for span in spans if span["ph"] == "X" and "step" in span["args"]}
    assert steps == set(range(STEPS + 2))  # the build is step 0
    reduced = train(trial("plain"), every=1)
    assert exact(done.run) == exact(reduced.run)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_reduce_their_records_too(launcher: Launcher, tmp_path: Path, strategy: str) -> None:
    ranks = {"strategy": strategy, "world_size": 2, "steps": 9}
    reduced = launcher.run(trial("plain", recipe=ranks))
    whole = launcher.run(trial("plain", recipe=ranks, trace_folder=str(tmp_path)))
    assert isinstance(reduced, Outcome)
    assert isinstance(whole, Outcome)
    assert exact(reduced.run) == exact(whole.run)
    assert reduced.levels == whole.levels


HELD = """
import resource
import torch
from memprof.measurement.meter import Meter

def measure(steps):
    meter = Meter(torch.device("cpu"))
    meter.start()
    for step in range(1, steps):
        meter.begin_step()
        meter.begin_phase(step, "forward")
        for _ in range(500):
            torch.empty(10)
    peak = meter.finish().step_peaks
    assert peak == [40] * (steps - 1), peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(measure(20), measure(120))
"""


def test_memory_of_the_record_does_not_grow_with_the_steps() -> None:
    few, many = map(int, run([sys.executable, "-c", HELD]).stdout.split())  # in KiB
    assert many - few < 30 << 10  # the whole record would be more than 100 MiB


def test_blocks_from_before_a_cut_are_followed_to_their_end() -> None:
    meter = Meter(torch.device("cpu"))
    meter.start()
    early = torch.empty(1000, dtype=torch.uint8)
    kept = torch.empty(300, dtype=torch.uint8)
    for step in range(1, 8):
        meter.begin_step()
        meter.begin_phase(step, "forward")
        if step == 6:  # after the first cut, which is before step 5
            del early
    reading = meter.finish()
    assert reading.step_peaks == [1300] * 6 + [300]
    assert kept.nbytes == 300


@settings(deadline=None)
@given(streams(), st.data())
def test_a_trace_of_pieces_has_the_peaks_of_the_whole(entries: list[Entry], data: st.DataObject) -> None:
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(entries)), max_size=4))), len(entries)]
    builder, peaks = TraceBuilder(), TrainingPeaks()
    for begin, end in pairwise(cuts):
        peaks.add(span_peaks(builder.trace))
        builder.forget()
        builder.take(entries[begin:end])
    peaks.add(span_peaks(builder.trace))
    whole = build_trace(entries)
    expected = TrainingPeaks()
    expected.add(span_peaks(whole))
    assert (peaks.phases, peaks.steps) == (expected.phases, expected.steps)
    assert peaks.top is None or expected.top is not None
    if peaks.top is not None and expected.top is not None:
        assert peaks.top.step == expected.top.step
    last = len(whole.events) - 1
    assert holdings_at(builder.trace, len(builder.trace.events) - 1) == holdings_at(whole, last)


RECORDED = json.loads((HERE / "training.json").read_text())["runs"]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: f"{one['precision']} {one['conf']}")
def test_a_cuda_recording_in_pieces_comes_to_the_same(recorded: dict[str, Any]) -> None:
    history, conf = [unpack(event) for event in recorded["events"]], parse_alloc_conf(recorded["conf"])
    entries = rounded(history, conf, [])
    asked = [index for index, event in enumerate(history) if event["action"] in ("alloc", "free_requested")]
    source = random.Random(recorded["conf"])
    cuts = [0, *sorted(source.sample(range(len(entries)), 6)), len(entries)]
    whole = HistorySummary(conf, CAPACITY)
    whole.add(history, entries)
    summary, streams_seen = HistorySummary(conf, CAPACITY), dict[int, int]()
    builder = TraceBuilder()
    for begin, end in pairwise(cuts):
        before = asked[begin] if begin else 0
        after = asked[end] if end < len(asked) else len(history)
        piece = [PhaseMark(begin + 1, "forward"), *entries[begin:end]]
        summary.add(history[before:after], piece)
        builder.forget()
        builder.take(as_requested(piece, history[before:after], streams_seen))
    assert summary.finish() == whole.finish()
    assert whole.finish().exact
    everything = build_trace(as_requested(entries, history))
    assert _at_the_end(builder.trace) == _at_the_end(everything)


def _at_the_end(trace: Trace) -> list[tuple[int, int]]:
    freed = {number for number, change in trace.events if change < 0}
    return [(block.size, block.stream) for number, block in enumerate(trace.blocks) if number not in freed]


def test_the_first_of_equal_peaks_is_the_top() -> None:
    entries: list[Entry] = []
    for step in (1, 2, 3):
        entries += [PhaseMark(step, "forward"), Allocation(step, 50), Free(step)]
    peaks = TrainingPeaks()
    peaks.add(span_peaks(build_trace(entries)))
    assert peaks.top is not None
    assert peaks.top.step == 1
    assert list(peaks.steps) == [50, 50, 50]
