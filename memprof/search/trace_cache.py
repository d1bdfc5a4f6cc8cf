"""Predicted trainings at the values of a knob: traced once for all optimizers and all devices with the same kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memprof.allocator.settings import SMALLEST_BLOCK
from memprof.devices.target import Target
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.recipe import Recipe
from memprof.documents.vary import BATCH, Vary
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.prediction.fake.training import fake_runs
from memprof.prediction.gc_pause import no_garbage_collection
from memprof.prediction.repeat_step import trace_of
from memprof.prediction.semantics import semantics_of
from memprof.search.scaled_blocks import Blocks, Need, blocks_at
from memprof.training.micro_batches import recipe_at, traced
from memprof.workloads.loader import load_workload

# How far beyond what was traced a guess by a line may lie: a trace of very many layers takes its time.
_FURTHEST = 16


def with_value(workload: WorkloadSpec, batch_size: int, knob: str, value: int) -> tuple[WorkloadSpec, int]:
    """Return the workload and the batch size at a value of the knob."""
    if knob == BATCH:
        return workload, value
    return workload.model_copy(update={"knobs": {**workload.knobs, knob: value}}), batch_size


@dataclass
class Traces:
    """What is traced of one workload, for one kind of kernels.

    Attributes:
        workload: what is trained, at whatever value of the knob.
        optimizers: that are traced together.
        recipe: how it is trained.
        batch_size: where that is not the knob.
        vary: the knob.
        target: stands for all devices with these kernels.
        blocks: by optimizer and value.
        parameters: of the model, by value.
        weights: bytes of the parameters, by value.
        failures: by optimizer, why it cannot train the model.
        refused: by value, why the workload does not take it.
    """

    workload: WorkloadSpec
    optimizers: Sequence[OptimizerSpec]
    recipe: Recipe
    batch_size: int
    vary: Vary
    target: Target
    blocks: dict[int, dict[int, Blocks]] = field(default_factory=dict)
    parameters: dict[int, int] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    _needs: dict[tuple[int, int], Need] = field(default_factory=dict)
    _within: dict[tuple[int, int, int], Need] = field(default_factory=dict)
    _guessed: dict[tuple[int, int, int, int], bool] = field(default_factory=dict)

    @no_garbage_collection()
    def take(self, value: int, numbers: Sequence[int] | None = None) -> None:
        """Trace the training at a value, or note why it is refused; with all optimizers if not given which."""
        chosen = range(len(self.optimizers)) if numbers is None else numbers
        workload, batch_size = with_value(self.workload, self.batch_size, self.vary.knob, value)
        semantics = semantics_of(self.target)
        try:
            if ":" not in workload.model:  # a built-in says at once what it does not take
                load_workload(workload)
            recipe = traced(recipe_at(self.recipe, self.vary, value))
            made = fake_runs(workload, [self.optimizers[n] for n in chosen], recipe, batch_size, semantics)
        except UsageError as error:
            self.refused[value] = str(error)
            return
        for number, fake in zip(chosen, made, strict=True):
            if fake.failure is not None or fake.parameters is None:
                self.failures[number] = fake.failure or "it trained nothing"
                continue
            self.parameters[value] = fake.parameters.count
            self.weights[value] = fake.parameters.bytes
            self.blocks.setdefault(number, {})[value] = Blocks.of(value, trace_of(fake, self.target))

    def need(self, optimizer: int, value: int) -> Need:
        """Return what a traced training takes of a device without an end."""
        key = optimizer, value
        if key not in self._needs:
            self._needs[key] = self.blocks[optimizer][value].need(self.target)
        return self._needs[key]

    def need_within(self, optimizer: int, value: int, capacity_bytes: int) -> Need:
        """Return what a traced training takes of a device of that capacity."""
        key = optimizer, value, capacity_bytes
        if key not in self._within:
            at_will = self.need(optimizer, value)
            self._within[key] = self.blocks[optimizer][value].need_within(self.target, capacity_bytes, at_will)
        return self._within[key]

    def guess(self, optimizer: int, capacity_bytes: int, low: int, high: int) -> int:
        """Return the largest value from `low` to `high` that should fit, going by what was traced."""
        traced = self.blocks[optimizer]
        if len(traced) < 2:
            return min(high, 2 * max(traced))
        if blocks_at(high, [blocks.bare for blocks in traced.values()]) is None:
            high = max(low, min(high, _FURTHEST * max(traced)))
        values = self.vary.between(low, high)
        bound = _last_true(0, len(values) - 1, lambda place: self._may_fit(optimizer, values[place], capacity_bytes))
        return values[self._step_down(bound, lambda place: self._should_fit(optimizer, values[place], capacity_bytes))]

    def _may_fit(self, optimizer: int, value: int, capacity_bytes: int) -> bool:
        """Say whether the tensors in use, rounded by nobody, have room."""
        bare = blocks_at(value, [blocks.bare for blocks in self.blocks[optimizer].values()])
        if bare is None:
            return self._should_fit(optimizer, value, capacity_bytes)
        return bare.allocated_bytes() <= capacity_bytes

    def _should_fit(self, optimizer: int, value: int, capacity_bytes: int) -> bool:
        key = optimizer, value, capacity_bytes, len(self.blocks[optimizer])
        if key not in self._guessed:
            self._guessed[key] = self._guess_fits(optimizer, value, capacity_bytes)
        return self._guessed[key]

    def _guess_fits(self, optimizer: int, value: int, capacity_bytes: int) -> bool:
        """Replay the blocks as they should be; where kernels take other scratch, the tensors, and scratch by a line."""
        traced = self.blocks[optimizer]
        blocks = blocks_at(value, list(traced.values()))
        if blocks is not None:
            return blocks.fits(self.target, capacity_bytes)
        bare = blocks_at(value, [one.bare for one in traced.values()])
        if bare is None:
            used = self._by_line(optimizer, value, self._used)
            return used + self._unused(optimizer, value, capacity_bytes) <= capacity_bytes
        return bare.fits(self.target, capacity_bytes - self._by_line(optimizer, value, self._scratch))

    def _used(self, optimizer: int, value: int) -> int:
        """Return the most bytes in use at once in a traced training."""
        return self.blocks[optimizer][value].allocated_bytes(SMALLEST_BLOCK if self.target.kind == "cuda" else 1)

    def _unused(self, optimizer: int, value: int, capacity_bytes: int) -> int:
        """Return what will be reserved beyond that: as at the nearest trace, if the allocator does not give it back."""
        traced = self.blocks[optimizer]
        over = [one for one in traced if self.need(optimizer, one).bytes > capacity_bytes]
        if any(self.need_within(optimizer, one, capacity_bytes).fits for one in over):
            return 0
        nearest = min((one for one in traced if one not in over), key=lambda one: abs(one - value), default=None)
        return 0 if nearest is None else self.need(optimizer, nearest).bytes - self._used(optimizer, nearest)

    def _scratch(self, optimizer: int, value: int) -> int:
        """Return how much more a traced training takes for the scratch of its kernels."""
        return self.need(optimizer, value).bytes - self.blocks[optimizer][value].bare.need(self.target).bytes

    def _by_line(self, optimizer: int, value: int, height: Callable[[int, int], int]) -> int:
        """Return the height at a value of the line through the traces on both sides of it, else the two nearest."""
        nearest = sorted(self.blocks[optimizer], key=lambda traced: abs(traced - value))
        beyond = (traced for traced in nearest if (traced > value) != (nearest[0] > value))
        first, second = nearest[0], next(beyond, nearest[1])
        begin, end = height(optimizer, first), height(optimizer, second)
        return begin + round((end - begin) / (second - first) * (value - first))

    def _step_down(self, bound: int, fits: Callable[[int], bool]) -> int:
        """Return the largest place up to the bound that fits, 0 at least: reserved is not much more than used."""
        failing, stride = bound + 1, 1
        while bound > 0 and not fits(bound):
            failing, bound, stride = bound, max(0, bound - stride), 2 * stride
        return _last_true(bound, failing - 1, fits)


def _last_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the last value from `low` on for which a falling condition holds; `low` where it holds for none."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
