"""Predicts runs: trains on fake tensors, replays the trace through the device's allocator, and analyses it.

predict_run(trial, Target())                                            # this machine's CPU
predict_run(trial, find_target("rtx-4090"))                  # a GPU that is not here
predict_runs(workload, optimizers, recipe, batch_size, target)          # one forward and backward pass for all
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from memprof.allocator.caching import CachingAllocator
from memprof.devices.context import LATE_WITHIN_BYTES
from memprof.devices.resolve import find_target, is_real
from memprof.devices.target import Target
from memprof.documents.comparison import OptimizerInfo, Peak, PhasePeak, Run, Steps
from memprof.documents.jobs import Forecast, Outcome, Outcomes, Trial
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.export import save_trace
from memprof.prediction.accuracy import accuracy, standing
from memprof.prediction.basis import confidence_of, rank_notes, ranks_of
from memprof.prediction.bounds import Bounds, upper_bounds
from memprof.prediction.fake.training import STEPS, FakeRun, fake_runs
from memprof.prediction.gc_pause import no_garbage_collection
from memprof.prediction.repeat_step import labelled_trace, trace_of
from memprof.prediction.replay_trace import Replayed, replay_blocks
from memprof.prediction.semantics import semantics_of
from memprof.trace.events import Trace
from memprof.trace.peaks import SpanPeak, attributed_breakdown, span_peaks, tensor_peaks
from memprof.trace.timeline import make_timeline
from memprof.training.counts import state_figures
from memprof.units import format_size


def run(forecast: Forecast, send: Callable[[BaseModel], None]) -> Outcomes:
    """Do a worker's job: predict every optimizer of a forecast from one forward and backward pass.

    Args:
        forecast: The job.
        send: Takes messages on progress; a forecast sends none.

    Raises:
        UsageError: As in `predict_runs`.
    """
    target = find_target(forecast.device)
    if forecast.capacity_bytes is not None and target.capacity_bytes is not None:
        mine = is_real(forecast.device)  # the memory that its driver reports includes the CUDA context
        capacity = min(forecast.capacity_bytes, target.capacity_bytes) if mine else forecast.capacity_bytes
        target = replace(target, capacity_bytes=capacity)
    runs = predict_runs(
        forecast.workload,
        forecast.optimizers,
        forecast.recipe,
        forecast.batch_size,
        target,
        forecast.steps,
        timeline=forecast.timeline,
        trace_folder=Path(forecast.trace_folder) if forecast.trace_folder is not None else None,
    )
    notes = [standing()] if target.kind == "cuda" and accuracy() is None else []
    noted = [run.model_copy(update={"notes": [*run.notes, *notes]}) for run in runs]
    return Outcomes(outcomes=[Outcome(run=run, levels=_levels(run)) for run in noted])


def _levels(run: Run) -> dict[str, list[int]]:
    return {name: [peak.reserved_bytes or peak.allocated_bytes] for name, peak in run.phases.items()}


def predict_run(trial: Trial, target: Target, steps: int | None = None) -> Run:
    """Predict the run of a trial.

    Args:
        trial: The trial. Its own device does not matter.
        target: The device.
        steps: The number of steps; None for as many as `predict_runs` takes.

    Raises:
        UsageError: The workload or the recipe is at fault, or the model decides by values that depend on the data.
    """
    return predict_runs(trial.workload, [trial.optimizer], trial.recipe, trial.batch_size, target, steps)[0]


@no_garbage_collection()
def predict_runs(
    workload: WorkloadSpec,
    optimizers: Sequence[OptimizerSpec],
    recipe: Recipe,
    batch_size: int,
    target: Target,
    steps: int | None = None,
    timeline: bool = False,
    trace_folder: Path | None = None,
) -> list[Run]:
    """Predict one run for each optimizer, from one forward and backward pass of the model.

    Args:
        workload: The workload.
        optimizers: The optimizers. Each steps on the same gradients.
        recipe: The recipe.
        batch_size: The number of samples in a micro-batch.
        target: The device.
        steps: The number of steps; None for as many as the reserved memory needs to stop growing.
        timeline: Whether the runs carry their timelines.
        trace_folder: The folder that takes the whole traces; None to write no traces.

    Raises:
        UsageError: As in `predict_run`.
    """
    semantics = semantics_of(target)
    made = fake_runs(workload, optimizers, recipe, batch_size, semantics, steps or STEPS)
    traces = [trace_of(fake, target) if steps is None else labelled_trace(fake) for fake in made]
    jobs = zip(optimizers, made, traces, strict=True)
    return [run_of(spec, fake, trace, target, timeline, trace_folder) for spec, fake, trace in jobs]


def run_of(
    spec: OptimizerSpec,
    fake: FakeRun,
    trace: Trace,
    target: Target,
    timeline: bool,
    trace_folder: Path | None,
    *,
    with_build: bool = False,
) -> Run:
    """Return the run that a fake training predicts for a device.

    Args:
        spec: The optimizer.
        fake: The fake training.
        trace: Its trace.
        target: The device.
        timeline: Whether the run carries its timeline.
        trace_folder: The folder that takes the whole trace; None to write no trace.
        with_build: Whether the time before the first training step is a phase, which may set the peak.
    """
    info = OptimizerInfo(spec=spec.text, name=spec.name, options=spec.options, implementation=fake.implementation)
    if fake.failure is not None or fake.state is None or fake.parameters is None:
        return Run(optimizer=info, device=target.name, source="predicted", status="failed", reason=fake.failure)
    for block in trace.blocks:
        block.tensor = block.tensor and block.category != "workspace"  # a labelled workspace is no tensor
    replayed = _replayed(trace, target)
    if replayed.failure is not None:
        reason = _out_of_memory(trace, replayed, target)
        return Run(optimizer=info, device=target.name, source="predicted", status="oom", reason=reason)
    if trace_folder is not None:
        settings = target.allocator if target.kind == "cuda" else None
        save_trace(trace, trace_folder, spec.text, settings, replayed.reserved_levels)
    tensors = tensor_peaks(trace, trace.spans[-1].step)
    spans = [span for span in span_peaks(replayed.trace) if span.step > 0 or with_build]
    bounds = None
    if target.kind == "cuda":
        bounds = upper_bounds(trace, replayed, target.allocator, target.capacity_bytes)
    told = target if fake.ranks == 1 else replace(target, context_bytes=None)  # NCCL's memory is not known
    peak = _peak(spans, tensors, replayed, bounds, told)
    return Run(
        optimizer=info,
        device=target.name,
        source="predicted",
        status="ok",
        parameters=fake.parameters,
        state=state_figures(fake.state, fake.parameters),
        peak=peak,
        breakdown=attributed_breakdown(replayed.trace),
        phases=_phases(spans, tensors, replayed, bounds),
        steps=Steps(seconds=[], losses=[], allocated_bytes=_step_peaks(spans)),
        timeline=make_timeline(replayed.trace, replayed.reserved_levels or None) if timeline else None,
        confidence=confidence_of(trace, fake, told, bounds),
        rank=fake.rank if fake.ranks > 1 else None,
        ranks=ranks_of(fake, target, peak),
        notes=rank_notes(fake, target),
    )


def _replayed(trace: Trace, target: Target) -> Replayed:
    if target.kind == "cpu":  # the figures of the CPU's allocator do not include malloc's rounding
        return Replayed(trace, {}, None)
    return replay_blocks(trace, CachingAllocator(target.capacity_bytes, target.allocator))


def _peak(
    spans: list[SpanPeak], tensors: dict[str, int], replayed: Replayed, bounds: Bounds | None, target: Target
) -> Peak:
    top = max(spans, key=lambda span: span.peak_bytes)
    peak = Peak(
        tensor_bytes=max(tensors.values()),
        allocated_bytes=top.peak_bytes,
        reserved_bytes=max(replayed.reserved.values(), default=None),
        phase=top.phase,
        step=top.step,
    )
    if bounds is None or peak.reserved_bytes is None:
        return peak
    trained = {span.phase for span in spans}
    reserved = max(bounds.reserved.values())
    uppers = {
        "allocated_upper_bytes": max(most for phase, most in bounds.allocated.items() if phase in trained),
        "reserved_upper_bytes": reserved,
    }
    if target.context_bytes is not None:
        context = max(target.context_range_bytes[1], target.context_bytes)
        uppers["process_bytes"] = peak.reserved_bytes + target.context_bytes + target.late_bytes
        uppers["process_upper_bytes"] = reserved + context + target.late_bytes + LATE_WITHIN_BYTES
    return peak.model_copy(update=uppers)


def _phases(
    spans: list[SpanPeak], tensors: dict[str, int], replayed: Replayed, bounds: Bounds | None
) -> dict[str, PhasePeak]:
    return {
        phase: PhasePeak(
            tensor_bytes=tensors.get(phase),
            allocated_bytes=max(span.peak_bytes for span in spans if span.phase == phase),
            reserved_bytes=replayed.reserved.get(phase),
            allocated_upper_bytes=bounds.allocated[phase] if bounds is not None else None,
            reserved_upper_bytes=bounds.reserved[phase] if bounds is not None else None,
        )
        for phase in dict.fromkeys(span.phase for span in spans)
    }


def _step_peaks(spans: list[SpanPeak]) -> list[int]:
    steps = sorted({span.step for span in spans if span.step > 0})
    return [max(span.peak_bytes for span in spans if span.step == step) for step in steps]


def _out_of_memory(trace: Trace, replayed: Replayed, target: Target) -> str:
    assert replayed.failure is not None
    assert target.capacity_bytes is not None
    span = [span for span in trace.spans if span.start <= replayed.failure][-1]
    place = "the build" if span.step == 0 else f"the {span.phase} phase of step {span.step}"
    without_end = replay_blocks(trace, CachingAllocator(None, target.allocator))
    needed = format_size(max(without_end.reserved.values()))
    return f"out of memory in {place}: {needed} needed, {format_size(target.capacity_bytes)} there"
