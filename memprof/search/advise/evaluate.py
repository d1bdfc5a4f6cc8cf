"""The job of a worker for `memprof advise`: the peaks of one recipe with several optimizers and allocator settings."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from memprof.devices.resolve import find_target
from memprof.devices.target import Target
from memprof.documents.jobs import Weighing, Weight, Weights
from memprof.errors import UsageError
from memprof.prediction.fake.training import FakeRun, fake_runs
from memprof.prediction.repeat_step import trace_of
from memprof.prediction.semantics import semantics_of
from memprof.search.scaled_blocks import TracedBlocks
from memprof.trace.peaks import holdings_at, span_peaks


def run(job: Weighing, send: Callable[[BaseModel], None]) -> Weights:
    """Trace each optimizer once, and replay its trace with every setting of the allocator.

    Args:
        job: The recipe, the optimizers and the allocator settings.
        send: Not used, because the job is over after a single trace.

    Returns:
        The peaks, or the reasons why there are none, for each optimizer and each setting.
    """
    targets = [find_target(job.device, conf) for conf in job.confs]
    semantics = semantics_of(targets[0])
    try:
        made = fake_runs(job.workload, job.optimizers, job.recipe, job.batch_size, semantics)
    except UsageError as error:  # the model cannot be trained with this recipe
        return Weights(weights=[[Weight(reason=str(error))] * len(targets)] * len(job.optimizers))
    return Weights(weights=[_weights(fake, targets, job.capacity_bytes) for fake in made])


def _weights(fake: FakeRun, targets: list[Target], capacity_bytes: int) -> list[Weight]:
    if fake.failure is not None:
        return [Weight(reason=fake.failure)] * len(targets)
    trace = trace_of(fake, targets[0])
    blocks = TracedBlocks.of(0, trace)
    top = max((span for span in span_peaks(trace) if span.step > 0), key=lambda span: span.peak_bytes)
    held = holdings_at(trace, top.event).by_category
    found = []
    for target in targets:
        unlimited = blocks.peak(target)
        within = blocks.peak_within(target, capacity_bytes, unlimited)
        found.append(
            Weight(bytes=unlimited.bytes, fits=within.fits, phase=within.phase, held=held, held_phase=top.phase)
        )
    return found
