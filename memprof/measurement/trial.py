"""Measures one trial in a process of its own: builds the model, trains a few steps, and returns their memory."""

from __future__ import annotations

import gc
import math
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from memprof.documents.comparison import OptimizerInfo, Run, Steps
from memprof.documents.jobs import Outcome, Step, Trial
from memprof.errors import MemprofError, UsageError
from memprof.export import save_trace
from memprof.measurement.meter import Meter, Reading
from memprof.measurement.process_memory import device_limit
from memprof.optimizers.implementation import implementation_name
from memprof.optimizers.registry import build_optimizer
from memprof.optimizers.state_bytes import measure_state
from memprof.trace.modules import compiled_graphs, followed_modules
from memprof.training.build import bucket_sizes, build_model, own_module
from memprof.training.counts import count_parameters, state_figures
from memprof.training.labels import Labeller
from memprof.training.seeds import seed_weights
from memprof.training.session import Session
from memprof.training.step import PerParameterOptimizers, TrainingStep
from memprof.user_code import describe, is_lost_rank, is_out_of_memory, raised
from memprof.workloads.loader import load_workload

Emit = Callable[[Step], None]


class _OptimizerError(MemprofError):
    """The optimizer cannot train the workload, but others may."""


def run_trial(trial: Trial, emit: Emit, rank: int = 0) -> Outcome:
    """Train a trial's steps and return its outcome, whose run is `ok`, or `oom` or `failed` with a reason.

    Args:
        trial: The training and its device.
        emit: Takes a `Step` whenever a training step begins.
        rank: The rank of this process if the recipe has several. The process group exists already.

    Raises:
        UsageError: The workload or the recipe is at fault, so that no optimizer could run.
    """
    training = _Training(trial, emit, rank)
    try:
        return training.run()
    except _OptimizerError as failure:
        return training.unfinished("failed", str(failure))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return training.unfinished("oom", f"out of memory in {training.session.place}")


class _Training:
    """A trial from its build to its last step."""

    def __init__(self, trial: Trial, emit: Emit, rank: int) -> None:
        self.trial = trial
        self._rank = rank
        self.device = torch.device(trial.device)
        self._emit = emit
        self._meter = Meter(self.device, whole=trial.trace_folder is not None)
        self._losses = array("d")
        self._seconds = array("d")
        self.session = Session(
            self._meter.mark, self._meter.begin_phase, step_in_backward=trial.recipe.step_in_backward
        )

    def run(self) -> Outcome:
        limit = device_limit(self.device, self.trial.limit_bytes)
        # Under FSDP the whole model is made on the host before it is sharded, and that is no device's memory.
        sharded = self.trial.recipe.strategy == "fsdp"
        self._emit(Step(stage="build"))
        if not sharded:
            limit()
        self._meter.start()
        self._build()
        if sharded:
            limit()
        count = self.trial.recipe.warmup + self.trial.recipe.steps
        for number in range(1, count + 1):
            self.session.number = number
            self._emit(Step(stage="step", step=number, steps=count, peak_bytes=self._meter.high_water_bytes()))
            self._meter.begin_step()
            self._train_step(attributed=number == count and self.trial.purpose == "measure")
        return self._finished()

    def unfinished(self, status: Literal["oom", "failed"], reason: str) -> Outcome:
        run = Run(optimizer=self._optimizer_info(None), device=self.trial.device, status=status, reason=reason)
        return Outcome(run=run)

    def _build(self) -> None:
        recipe = self.trial.recipe
        seed_weights(recipe.seed)
        workload = load_workload(self.trial.workload).workload
        self.model = build_model(workload, recipe, self.device)
        self._own = own_module(self.model, recipe)
        labels = Labeller(self._own)
        try:
            self.optimizer: Any = self._build_optimizer()
        except UsageError as error:  # this optimizer does not take the model's parameters, but another may
            raise _OptimizerError(str(error)) from error
        self._step = TrainingStep(
            workload,
            self.model,
            self.optimizer,
            recipe,
            self.device,
            self.trial.batch_size,
            self.session.begin_phase,
        )
        self.session.built(
            lambda: labels, lambda labels: self._meter.mark(labels.optimizer_state(self.optimizer)), self._step
        )

    def _build_optimizer(self) -> Any:
        named = [(name, p) for name, p in self._own.named_parameters() if p.requires_grad]
        if not self.trial.recipe.step_in_backward:
            return build_optimizer(self.trial.optimizer, named)
        names = {parameter: name for name, parameter in named}
        return PerParameterOptimizers(
            names, lambda p: build_optimizer(self.trial.optimizer, [(names[p], p)]), self.session.before_own_step
        )

    def _train_step(self, attributed: bool) -> None:
        began = time.perf_counter()
        try:
            with self._attribution(attributed):
                self._step.run()
            self._meter.synchronize()
        except MemprofError:
            raise
        except Exception as error:
            if is_out_of_memory(error) or is_lost_rank(error):
                raise
            raise self._blame(error) from error
        if self.session.number > self.trial.recipe.warmup and not attributed:
            self._seconds.append(time.perf_counter() - began)
        self._note_loss()

    def _blame(self, error: Exception) -> MemprofError:
        if "find_unused_parameters" in str(error):  # DDP waits for the gradients of all parameters
            return UsageError(
                "--strategy ddp needs every trainable parameter in every loss, and some of "
                f"{self.trial.workload.model} take no part; set requires_grad=False on them, or use --strategy fsdp"
            )
        if self.session.phase in ("batch", "forward", "backward") and self.session.number == 1:
            phase, model = self.session.phase, self.trial.workload.model
            return UsageError(f"the {phase} phase of {model} raised {describe(error)}")
        return _OptimizerError(raised(self.session.place, error))

    def _note_loss(self) -> None:
        assert self._step.loss is not None
        loss = self._step.loss.item()
        if not math.isfinite(loss):
            raise _OptimizerError(
                f"the loss is {loss} at step {self.session.number}; lower the learning rate (lr=...) or check the data"
            )
        self._losses.append(loss)

    @contextmanager
    def _attribution(self, attributed: bool) -> Iterator[None]:
        if not attributed:
            yield
            return
        self._meter.begin_attribution()
        self.session.follow()
        # Module hooks would make torch.compile compile again, with a graph break at each hook.
        with nullcontext() if compiled_graphs() else followed_modules(self._own, self._meter.mark):
            yield
        self.session.end_phase()

    def _finished(self) -> Outcome:
        gc.disable()  # training is over and the process ends soon, so the collector would only slow the analysis down
        state = measure_state(self.optimizer, self.model.parameters())
        parameters = count_parameters(self.model.parameters())
        reading = self._meter.finish(bucket_sizes(self.model))
        if self.trial.trace_folder is not None and self._rank == 0:
            save_trace(reading.trace, Path(self.trial.trace_folder), self.trial.optimizer.text)
        run = Run(
            optimizer=self._optimizer_info(self._implementation(reading)),
            device=self.trial.device,
            status="ok",
            parameters=parameters,
            state=state_figures(state, parameters),
            peak=reading.peak,
            breakdown=reading.breakdown,
            phases=reading.phases,
            allocator_history=reading.allocator_history,
            steps=Steps(seconds=list(self._seconds), losses=list(self._losses), allocated_bytes=reading.step_peaks),
            timeline=reading.timeline,
            notes=reading.notes + _compilation_note(),
        )
        return Outcome(run=run, levels=reading.levels)

    def _implementation(self, reading: Reading) -> str | None:
        if not self.session.following:
            return None
        phase = "backward" if self.trial.recipe.step_in_backward else "optimizer"
        one = next(iter(self.optimizer.optimizers.values())) if self.trial.recipe.step_in_backward else self.optimizer
        return implementation_name(one, reading.operators.get(phase, set()))

    def _optimizer_info(self, implementation: str | None) -> OptimizerInfo:
        spec = self.trial.optimizer
        return OptimizerInfo(spec=spec.text, name=spec.name, options=spec.options, implementation=implementation)


def _compilation_note() -> list[str]:
    if not compiled_graphs():
        return []
    return ["The trial ran code compiled by torch.compile: its memory is exact, but named after no module."]
