"""Measures a training script as it really runs, recorded from its first line on.

`measure_script(ScriptTrial(...), emit)` runs one script.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from memprof.documents.comparison import OptimizerInfo, Run, Steps
from memprof.documents.jobs import Outcome, ScriptTrial, Step
from memprof.export import save_trace
from memprof.measurement.meter import Meter, Reading
from memprof.measurement.process_memory import device_limit
from memprof.optimizers.implementation import implementation_name
from memprof.optimizers.state_bytes import measure_state
from memprof.scripts.optimizers import OptimizerRefusedError
from memprof.scripts.progress import PhaseProgress
from memprof.scripts.rules import next_is_last
from memprof.scripts.run import Ending, check_used, run_script
from memprof.scripts.session import ScriptSession
from memprof.scripts.torchrun import ProcessGroups, without_group
from memprof.trace.events import Mark, PhaseMark
from memprof.trace.modules import compiled_graphs, followed_modules
from memprof.training.counts import count_parameters, state_figures
from memprof.user_code import is_out_of_memory
from sm3.kernels import inner

Emit = Callable[[Any], None]


def measure_script(
    job: ScriptTrial, emit: Emit, groups: ProcessGroups | None = None, outputs: Path | None = None
) -> Outcome:
    """Run a script for its training steps and measure its memory.

    Args:
        job: The script and its optimizer.
        emit: Called with every step.
        groups: The process groups that the script creates, if this process is one of several ranks.
        outputs: The folder for the files that the script saves; None for a new temporary one.

    Returns:
        The outcome with the measured run, whose status is `ok`, `oom` or `failed`.

    Raises:
        UsageError: The script is at fault, or it takes no training step.
    """
    return _MeasuredScript(job, emit, groups, outputs).run()


class _MeasuredScript:
    """One running script. The meter records what `memprof.scripts.session` reports of it."""

    def __init__(self, job: ScriptTrial, emit: Emit, groups: ProcessGroups | None, outputs: Path | None) -> None:
        self._job = job
        self._groups = groups
        self._outputs = outputs
        self._emit = emit
        self._device = torch.device(job.device)
        self._meter = Meter(self._device, whole=True, with_build=True)
        self._session = ScriptSession(self, labelling=False)
        self._progress = PhaseProgress(emit, job.steps, self._meter.high_water_bytes)
        self._reading: Reading | None = None
        self._attributing = ExitStack()
        self._seconds: list[float] = []
        self._phase = "build"
        self._sizes: list[int] | None = None  # the allocations of the last step
        self._began = time.perf_counter()

    def run(self) -> Outcome:
        self._emit(Step(stage="build"))
        limit = device_limit(self._device, self._job.limit_bytes)
        try:
            recorded = lambda: self._recorded(limit)  # noqa: E731
            ending = run_script(self._job, self._session, self._emit, recorded, outputs=self._outputs)
        except OptimizerRefusedError as error:
            return self._unfinished("failed", str(error))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            number, phase = self._session.cycles.count + 1, self._session.phase
            place = "the build" if phase == "build" else f"the {phase} phase of step {number}"
            return self._unfinished("oom", f"out of memory in {place}").model_copy(update={"phase": phase})
        if self._reading is None:
            self.finished()
        assert self._reading is not None
        if self._device.type == "cuda":
            most = self._reading.peak.allocated_bytes
            used = check_used(self._job, self._session, self._trained_on, self._job.device, most)
            ending = replace(ending, notes=[*used, *ending.notes])
        return Outcome(run=self._made(self._reading, ending), levels=self._reading.levels)

    @contextmanager
    def _recorded(self, limit: Callable[[], object]) -> Iterator[None]:
        inner.rounding()  # SM3 finds this out once per process, with a computation that is not part of the training
        limit()
        self._meter.start()
        yield

    # The following methods are called by the session.

    def mark(self, mark: Mark) -> None:
        if isinstance(mark, PhaseMark):
            if self._session.labelling and self._phase in ("save", "load", "other"):
                self._session.label_what_lives()
            self._phase = mark.phase
            self._meter.begin_phase(mark.step, mark.phase)
            if not self._session.ended:
                self._progress.phase_begins(self._session.step if mark.step else 0, mark.phase)
        else:
            self._meter.mark(mark)

    def quiet(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def model_found(self, name: str, model: nn.Module) -> None:
        """Do nothing, because names are looked up when operators are recorded."""

    def step_ended(self, number: int) -> bool:
        self._meter.synchronize()
        if number > 1 and not self._session.labelling:
            self._seconds.append(time.perf_counter() - self._began)
        self._count()
        wanted, high_water = self._job.steps, self._meter.high_water_bytes()
        self._emit(Step(stage="step", step=number, steps=wanted or 0, peak_bytes=high_water))
        if self._session.labelling:
            return True
        if wanted is None:
            sizes = self._meter.step_sizes()
            self._session.alike, self._sizes = sizes == self._sizes, sizes
        if next_is_last(number, wanted, self._session.alike, self._session.optimizers_waiting):
            self._attribute()
        self._began = time.perf_counter()
        return False

    def finished(self) -> None:
        self._attributing.close()
        gc.disable()  # the script is over, and without the collector the analysis is faster
        self._reading = self._meter.finish(self._buckets, self._session.tidied)

    def _attribute(self) -> None:
        """Begin to record the operators of the last step and the modules that call them."""
        self._meter.begin_attribution()
        self._session.label_what_lives()
        self._session.labelling = True
        # Module hooks would make torch.compile compile again, with breaks where they are called.
        if not compiled_graphs():
            self._attributing.enter_context(followed_modules(self._session.whole_model(), self._meter.mark))

    def _count(self) -> None:
        """Count parameters and state while they are alive, as they are gone once the script has ended by itself."""
        parameters, together = self._session.parameters(), self._session.in_use.together
        self._parameters = count_parameters(parameters)
        self._state = measure_state(together, parameters)  # type: ignore[arg-type]  # `Together` holds the optimizers
        self._one = next(iter(together.optimizers.values()))
        self._buckets = self._session.bucket_sizes()
        self._trained_on = {parameter.device.type for parameter in self._session.in_use.parameters()}

    # The following methods make the result.

    def _made(self, reading: Reading, ending: Ending) -> Run:
        spec = self._job.substitution.spec
        if self._job.trace_folder is not None:
            save_trace(reading.trace, Path(self._job.trace_folder), spec.text)
        implementation = None
        if self._session.labelling:
            implementation = implementation_name(self._one, reading.operators.get("optimizer", set()))
        return Run(
            optimizer=self._info(implementation),
            device=self._job.device,
            status="ok",
            parameters=self._parameters,
            state=state_figures(self._state, self._parameters),
            peak=reading.peak,
            breakdown=reading.breakdown,
            phases=reading.phases,
            allocator_history=reading.allocator_history,
            steps=Steps(seconds=self._seconds, losses=[], allocated_bytes=reading.step_peaks),
            timeline=reading.timeline,
            notes=[*reading.notes, *self._group_note(), *ending.notes, *self._unattributed()],
        )

    def _unattributed(self) -> list[str]:
        """Return a note that no breakdown is known, if the script ended before its last step was recognised."""
        count = self._session.cycles.count
        if self._session.labelling:
            return []
        hint = f": --steps {count} follows the last" if count > 1 else ""
        return [f"Who holds the memory is not known, as no step was followed operator by operator{hint}."]

    def _group_note(self) -> list[str]:
        if self._groups is None or self._groups.made or self._job.world_size is None:
            return []
        return [without_group(self._job.script.name, self._job.world_size)]

    def _unfinished(self, status: Literal["oom", "failed"], reason: str) -> Outcome:
        return Outcome(run=Run(optimizer=self._info(None), device=self._job.device, status=status, reason=reason))

    def _info(self, implementation: str | None) -> OptimizerInfo:
        spec = self._job.substitution.spec
        return OptimizerInfo(spec=spec.text, name=spec.name, options=spec.options, implementation=implementation)
