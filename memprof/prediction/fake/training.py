"""Trains on fake tensors. It needs no weights, no data and no GPU, and yields the events of an allocator."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from memprof.documents.comparison import Parameters
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import MemprofError, UsageError
from memprof.optimizers.implementation import implementation_name
from memprof.optimizers.registry import build_optimizer
from memprof.optimizers.state_bytes import StateReport, measure_state
from memprof.prediction.cpu.semantics import CpuSemantics
from memprof.prediction.fake.dispatch import FakeOperators
from memprof.prediction.fake.event_log import EventLog
from memprof.prediction.fake.modules import RunningModules, unwatched
from memprof.prediction.fake.shared_step import Contender, SharedStep
from memprof.prediction.fake.value_reads import Reads
from memprof.prediction.gc_pause import no_garbage_collection
from memprof.trace.events import Entry, PhaseMark
from memprof.training.build import bucket_sizes, own_module
from memprof.training.checkpointing import checkpoint_blocks
from memprof.training.counts import count_parameters
from memprof.training.labels import Labeller
from memprof.training.seeds import seed_weights
from memprof.training.session import Session
from memprof.training.step import PerParameterOptimizers, TrainingStep, check_trainable
from memprof.user_code import describe
from memprof.workloads.loader import load_workload

STEPS = 2  # the first step makes the state, and from the second on every step makes the same allocations


@dataclass(frozen=True)
class FakeRun:
    """The fake training of one optimizer.

    Attributes:
        entries: Every allocation, free and mark from the build on; empty if the training failed.
        parameters: The figures of the model's parameters; None if the training failed.
        state: The optimizer's state after the last step; None if the training failed.
        implementation: The implementation of the optimizer that ran.
        failure: Why the training failed; None if it did not.
        assumed: The operators whose answer was assumed, with the phase.
        guesses: Sentences about what was predicted as something other than it is.
        buckets: The bytes of each bucket in which DDP exchanges gradients.
        ranks: The number of ranks.
        rank: The rank whose training this is.
        alike: Whether all ranks hold the same memory; if not, the first rank holds the most. None if nothing is known
            of the other ranks.
    """

    entries: list[Entry]
    parameters: Parameters | None
    state: StateReport | None
    implementation: str | None
    failure: str | None
    assumed: frozenset[tuple[str, str]]
    guesses: frozenset[str] = frozenset()
    buckets: tuple[int, ...] = ()
    ranks: int = 1
    rank: int = 0
    alike: bool | None = True


def fake_runs(
    workload: WorkloadSpec,
    optimizers: Sequence[OptimizerSpec],
    recipe: Recipe,
    batch_size: int,
    semantics: CpuSemantics | None = None,
    steps: int = STEPS,
) -> list[FakeRun]:
    """Train a workload on fake tensors, once for all optimizers, and return what each would have done alone.

    Args:
        workload: The workload. Its model and its batches are made on fake tensors.
        optimizers: The optimizers. Each steps on the same gradients. An optimizer whose step ends a storage of the
            model or of the gradients, for example by replacing parameters, is trained by itself.
        recipe: The recipe. Its `warmup` and `steps` are not used.
        batch_size: The number of samples in a micro-batch.
        semantics: The semantics of the device; those of a CPU if None.
        steps: The number of steps, at least two; more than two if the batches differ.

    Returns:
        The training of each optimizer, in order.

    Raises:
        UsageError: The workload or the recipe is at fault, or the model decides by values that depend on the data.
    """

    def train(chosen: Sequence[OptimizerSpec]) -> tuple[list[FakeRun], set[int]]:
        training = _FakeTraining(workload, chosen, recipe, batch_size, semantics or CpuSemantics(), steps)
        return training.run(), training.meddlers

    runs, meddlers = train(optimizers)
    if not meddlers or len(optimizers) == 1:
        return runs
    rest = [number for number in range(len(optimizers)) if number not in meddlers]
    chosen = [optimizers[number] for number in rest]
    others = iter(fake_runs(workload, chosen, recipe, batch_size, semantics, steps) if rest else ())
    return [next(others) if number in rest else train([optimizers[number]])[0][0] for number in range(len(optimizers))]


class _FakeTraining:
    """A fake training of one model with several optimizers."""

    def __init__(
        self,
        workload: WorkloadSpec,
        optimizers: Sequence[OptimizerSpec],
        recipe: Recipe,
        batch_size: int,
        semantics: CpuSemantics,
        steps: int,
    ) -> None:
        self._workload = workload
        self._specs = list(optimizers)
        self._recipe = recipe
        self._batch_size = batch_size
        self._semantics = semantics
        self._steps = steps
        self._log = EventLog()
        self._reads = Reads()
        self._mode = FakeOperators(self._log, self._reads, semantics)
        self._contenders = [Contender(number) for number in range(len(optimizers))]
        self._session = Session(
            self._log.mark, self._note_phase, step_in_backward=recipe.step_in_backward, aside=unwatched
        )
        self.meddlers: set[int] = set()

    def run(self) -> list[FakeRun]:
        """Build the model, train it, and return the training of each optimizer."""
        with ExitStack() as stack:
            stack.enter_context(no_garbage_collection())
            stack.enter_context(self._semantics.applied(self._mode))
            self._join_ranks(stack)
            stack.enter_context(self._mode)
            self._build(stack)
            for number in range(1, self._steps + 1):
                self._session.number = number
                if any(contender.failure is None for contender in self._contenders):
                    self._train_step()
            self.meddlers = self._log.meddlers
            with unwatched():
                return [self._finished(contender) for contender in self._contenders]

    def _join_ranks(self, stack: ExitStack) -> None:
        if self._recipe.strategy != "single":
            from memprof.prediction.ranks.fake_ranks import fake_ranks  # half a second, for those who need it

            stack.enter_context(fake_ranks(self._mode, self._recipe))

    def _build(self, stack: ExitStack) -> None:
        recipe = self._recipe
        seed_weights(recipe.seed)
        workload = load_workload(self._workload).workload
        self._model = self._semantics.built(workload, self._mode, recipe).train()
        check_trainable(self._model)
        if recipe.precision == "bf16":
            self._model.to(torch.bfloat16)
        if recipe.checkpoint_activations:
            checkpoint_blocks(self._model)
        own = self._distribute(recipe)
        labels = Labeller(own)
        self._follow_modules(stack, own)
        self._step = TrainingStep(
            self._semantics.workload(workload, self._mode, recipe),
            self._model,
            self._build_optimizers(),
            recipe,
            self._semantics.device,
            self._batch_size,
            self._session.begin_phase,
        )
        self._session.built(lambda: labels, self._mark_states, self._step)

    def _distribute(self, recipe: Recipe) -> nn.Module:
        """Share the training among the ranks, and return the user's own module."""
        if recipe.strategy != "single":
            from memprof.training.strategies import distribute

            self._model = distribute(self._model, recipe, self._semantics.device)
        return own_module(self._model, recipe)

    def _follow_modules(self, stack: ExitStack, model: nn.Module) -> None:
        modules = RunningModules(model)
        stack.enter_context(modules.followed())
        self._mode.place = modules.place

    def _build_optimizers(self) -> Any:
        named = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        if not self._recipe.step_in_backward:
            return self._contend(None, named)
        names = {parameter: name for name, parameter in named}
        return PerParameterOptimizers(names, lambda p: self._contend(p, [(names[p], p)]), self._session.before_own_step)

    def _contend(self, key: nn.Parameter | None, named: list[tuple[str, nn.Parameter]]) -> Any:
        for contender, spec in zip(self._contenders, self._specs, strict=True):
            if contender.failure is None:
                contender.attempt(self._mode, partial(self._add, contender, spec, key, named), "the build")
        return SharedStep(self._contenders, key, self._mode, lambda: self._session.place)

    def _add(
        self,
        contender: Contender,
        spec: OptimizerSpec,
        key: nn.Parameter | None,
        named: list[tuple[str, nn.Parameter]],
    ) -> None:
        contender.optimizers[key] = build_optimizer(self._semantics.optimizer(spec), named)

    def _note_phase(self, step: int, phase: str) -> None:
        self._mode.phase = phase
        self._log.mark(PhaseMark(step, phase))

    def _mark_states(self, labels: Labeller) -> None:
        for contender in self._contenders:
            if contender.failure is None and contender.optimizers:
                with self._log.owned_by(contender.number):
                    self._log.mark(labels.optimizer_state(contender))

    def _train_step(self) -> None:
        if self._session.number == self._steps:
            gc.collect()  # frees reference cycles, which a real training would lose sooner or later
        self._session.follow()
        try:
            self._step.run()
        except MemprofError:
            raise
        except Exception as error:
            phase, model = self._session.phase, self._workload.model
            raise UsageError(f"the {phase} phase of {model} raised {describe(error)}") from error
        self._session.end_phase()

    def _finished(self, contender: Contender) -> FakeRun:
        assumed = frozenset(self._reads.assumed | contender.assumed)
        if contender.failure is not None:
            return FakeRun([], None, None, None, contender.failure, assumed)
        parameters = list(self._model.parameters())
        return FakeRun(
            entries=self._log.entries(contender.number),
            parameters=count_parameters(parameters),
            state=measure_state(contender, parameters),  # type: ignore[arg-type]
            implementation=implementation_name(contender.one, contender.operators),
            failure=None,
            assumed=assumed,
            guesses=frozenset({*self._reads.guesses, *self._mode.doubts}),
            buckets=tuple(bucket_sizes(self._model)),
            ranks=self._recipe.world_size,
            alike=self._recipe.strategy != "fsdp" or all(len(p) % self._recipe.world_size == 0 for p in parameters),
        )
