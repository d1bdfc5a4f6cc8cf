"""Predicts an unchanged training script by running it on fake tensors, without weights and without a GPU.

`predict_script(ScriptForecast(...), emit)` runs one script and records the events of an allocator.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memprof.devices.resolve import find_target
from memprof.devices.target import Target
from memprof.documents.comparison import OptimizerInfo, Run
from memprof.documents.jobs import Outcome, ScriptForecast, Step
from memprof.errors import MemprofError
from memprof.optimizers.implementation import implementation_name
from memprof.optimizers.state_bytes import measure_state
from memprof.prediction.cuda.refusals import memory_refusals
from memprof.prediction.fake.checkpoints import checkpoints_without_memory
from memprof.prediction.fake.dispatch import FakeOperators
from memprof.prediction.fake.event_log import EventLog
from memprof.prediction.fake.inference import inference_without_grad
from memprof.prediction.fake.modules import RunningModules, unwatched
from memprof.prediction.fake.training import FakeRun
from memprof.prediction.fake.value_reads import Reads
from memprof.prediction.gc_pause import no_garbage_collection
from memprof.prediction.repeat_step import labelled_trace
from memprof.prediction.run import run_of
from memprof.prediction.semantics import semantics_of
from memprof.scripts.optimizers import OptimizerRefusedError
from memprof.scripts.places import is_inner, short
from memprof.scripts.progress import PhaseProgress
from memprof.scripts.rules import is_last
from memprof.scripts.run import Ending, check_used, run_script
from memprof.scripts.session import ScriptSession
from memprof.scripts.stopping import ScriptRefused
from memprof.scripts.torchrun import ProcessGroups, ranks_of_a_machine, without_group
from memprof.trace.events import Allocation, CacheMark, Entry, Free, Mark, PhaseMark
from memprof.trace.storages import plain_tensors
from memprof.training.counts import count_parameters
from memprof.units import format_size

Emit = Callable[[Any], None]


def predict_script(job: ScriptForecast, emit: Emit) -> Outcome:
    """Run a script on fake tensors and predict its memory on the device.

    Args:
        job: The script and its optimizer.
        emit: Called with every step.

    Returns:
        The outcome with the predicted run, whose status is `ok`, `oom` or `failed`.

    Raises:
        UsageError: The script is at fault, or it takes no training step.
    """
    target = find_target(job.device)
    if job.limit_bytes is not None and target.kind == "cuda":
        target = replace(target, capacity_bytes=job.limit_bytes)
    return _FakeScript(job, target, emit).run()


class _FakeScript:
    """One running script. The event log records what `memprof.scripts.session` reports of it."""

    def __init__(self, job: ScriptForecast, target: Target, emit: Emit) -> None:
        self._job = job
        self._target = target
        self._emit = emit
        machine = ranks_of_a_machine(job.world_size or 1)
        self._rank = job.rank or 0
        self._semantics = semantics_of(target, limited=True, devices=machine, index=self._rank % machine)
        self._groups: ProcessGroups | None = None
        self._log = EventLog()
        self._reads = Reads(job.answers)
        self._mode = FakeOperators(self._log, self._reads, self._semantics)
        self._modules = RunningModules()
        self._mode.place = self._modules.place
        self._session = ScriptSession(self, labelling=True)
        self._progress = PhaseProgress(emit, job.steps, lambda: self._log.peak_bytes)
        self._fake: FakeRun | None = None
        self._shapes: list[list[int]] = []  # for each step, the sizes that it allocated, in order, with 0 for each free
        self._seen = 0
        self._imported = False

    def run(self) -> Outcome:
        self._emit(Step(stage="build"))
        try:
            around = lambda: checkpoints_without_memory(self._mode)  # noqa: E731
            ending = run_script(self._job, self._session, self._emit, self._applied, around)
        except OptimizerRefusedError as error:
            return Outcome(run=self._unfinished("failed", str(error)))
        except torch.OutOfMemoryError as error:
            phase, reason = self._out_of_memory(error)
            return Outcome(run=self._unfinished("oom", reason), phase=phase)
        except MemprofError:
            if self._refusal is None:
                raise
        if self._refusal is not None:  # the script may have caught the error
            return Outcome(run=self._unfinished("failed", str(self._refusal)))
        used = []
        if self._target.kind == "cuda":
            used = check_used(self._job, self._session, self._trained_on, self._target.name, self._log.peak_bytes)
        if self._fake is None:
            self.finished()
        assert self._fake is not None
        ending = replace(ending, notes=[*used, *ending.notes])
        return Outcome(run=self._made(self._fake, ending))

    @contextmanager
    def _applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(no_garbage_collection())
            stack.enter_context(self._semantics.applied(self._mode))
            if self._job.world_size is not None:
                from memprof.prediction.ranks.fake_ranks import fake_torchrun  # takes half a second, so only on demand

                made = fake_torchrun(self._mode, self._job.world_size, self._rank)
                self._groups = stack.enter_context(made)
            stack.enter_context(inference_without_grad())
            stack.enter_context(self._modules.followed())
            stack.enter_context(self._mode)
            yield

    @property
    def _refusal(self) -> MemprofError | None:
        """The error about an operation that cannot be predicted; the script may have caught it."""
        return self._mode.refusal or next(iter(memory_refusals), None)

    # The following methods are called by the session.

    def mark(self, mark: Mark) -> None:
        if isinstance(mark, PhaseMark):
            if self._refusal is not None:
                raise ScriptRefused(self._refusal)
            if mark.step and not self._imported:
                self._imported = True
                gc.collect()
                gc.freeze()  # imports create a million objects, which every collection would visit
            self._mode.phase = mark.phase
            if not self._session.ended:
                self._progress.phase_begins(self._session.step if mark.step else 0, mark.phase)
        self._log.mark(mark)

    def quiet(self) -> AbstractContextManager[Any]:
        return unwatched()

    def model_found(self, name: str, model: nn.Module) -> None:
        self._modules.add(model, name)

    def step_ended(self, number: int) -> bool:
        self._count()
        gc.collect()  # frees reference cycles, which a real training would free sooner or later
        made = self._log.since(self._seen)
        self._seen += len(made)
        self._shapes.append([entry.size if isinstance(entry, Allocation) else 0 for entry in made if _moves(entry)])
        alike = self._session.alike = len(self._shapes) > 1 and self._shapes[-1] == self._shapes[-2]
        self._shapes = self._shapes[-1:]
        waiting = self._session.optimizers_waiting
        self._emit(Step(stage="step", step=number, steps=self._job.steps or 0, peak_bytes=self._log.peak_bytes))
        return is_last(number, self._job.steps, alike, waiting)

    def finished(self) -> None:
        parameters, state, buckets = self._counted
        self._fake = FakeRun(
            entries=self._session.tidied(self._log.entries(0)),
            parameters=parameters,
            state=state,
            implementation=self._implementation,
            failure=None,
            assumed=frozenset(self._reads.assumed),
            guesses=frozenset({*self._reads.guesses, *self._mode.doubts}),
            buckets=buckets,
            ranks=self._job.world_size or 1 if self._groups is not None and self._groups.made else 1,
            rank=self._rank,
            alike=None,
        )

    def _count(self) -> None:
        """Count parameters and state while they are alive, as they are gone once the script has ended by itself."""
        with unwatched():
            parameters, together = self._session.parameters(), self._session.in_use.together
            state = measure_state(together, parameters)  # type: ignore[arg-type]  # `Together` holds the optimizers
            buckets = tuple(self._session.bucket_sizes())
            self._counted = count_parameters(parameters), state, buckets
            trained = self._session.in_use.parameters()
            parts = [part for parameter in trained for part in plain_tensors(parameter)]
            self._trained_on = {"cpu" if self._mode.on_host(part) else "cuda" for part in parts}
            operators = self._mode.operators_of.get("optimizer", set())
            self._implementation = implementation_name(next(iter(together.optimizers.values())), operators)

    # The following methods make the result.

    def _made(self, fake: FakeRun, ending: Ending) -> Run:
        folder = Path(self._job.trace_folder) if self._job.trace_folder is not None else None
        spec = self._job.substitution.spec
        trace = labelled_trace(fake)
        run = run_of(spec, fake, trace, self._target, True, folder, with_build=True)
        notes = [
            *run.notes,
            *self._group_note(),
            *ending.notes,
            *(_unused(place) for place in sorted(self._reads.unused)),
        ]
        return run.model_copy(update={"notes": notes})

    def _group_note(self) -> list[str]:
        if self._groups is None or self._groups.made or self._job.world_size is None:
            return []
        return [without_group(self._job.script.name, self._job.world_size)]

    def _out_of_memory(self, error: torch.OutOfMemoryError) -> tuple[str, str]:
        """Return the phase in which the memory ran out, and a reason with the requested size in PyTorch's words."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f" ({short(frame.filename)}:{frame.lineno})" for frame in frames if not is_inner(frame.filename)]
        marks = [entry for entry in self._log.entries(0) if isinstance(entry, (PhaseMark, CacheMark))]
        last = max((number for number, mark in enumerate(marks) if isinstance(mark, CacheMark)), default=len(marks))
        before = [mark for mark in marks[:last] if isinstance(mark, PhaseMark) and mark.step]
        where = f"the {before[-1].phase} phase of step {before[-1].step}" if before else "the build"
        asked = str(error).split(". ")[1].removeprefix("Tried to allocate ")
        there = format_size(self._target.capacity_bytes or 0)
        phase = before[-1].phase if before else "build"
        return phase, f"out of memory in {where}{''.join(lines[-1:])}: {asked} more needed, {there} there"

    def _unfinished(self, status: Any, reason: str) -> Run:
        spec = self._job.substitution.spec
        info = OptimizerInfo(spec=spec.text, name=spec.name, options=spec.options)
        return Run(optimizer=info, device=self._target.name, source="predicted", status=status, reason=reason)


def _moves(entry: Entry) -> bool:
    return isinstance(entry, (Allocation, Free))


def _unused(place: str) -> str:
    return f"--assume {place}: nothing there reads a value that the prediction does not know."
