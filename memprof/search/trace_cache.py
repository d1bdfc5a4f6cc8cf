"""A cache of predicted trainings: each value of a knob is traced once for all optimizers and all devices that run the
same kernels.
"""

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
from memprof.search.scaled_blocks import DevicePeak, TracedBlocks, blocks_at
from memprof.training.micro_batches import recipe_at, traced
from memprof.workloads.loader import load_workload

# A guess along a straight line may be at most this many times the largest traced value: a model with very many layers
# takes long to trace, and the guess may be wrong.
_FURTHEST = 16


def with_value(workload: WorkloadSpec, batch_size: int, knob: str, value: int) -> tuple[WorkloadSpec, int]:
    """Return the workload and the batch size when the knob is set to a value.

    Args:
        workload: The workload that is trained.
        batch_size: The batch size, where it is not the knob.
        knob: The name of the knob.
        value: The value of the knob.
    """
    if knob == BATCH:
        return workload, value
    return workload.model_copy(update={"knobs": {**workload.knobs, knob: value}}), batch_size


@dataclass
class TraceCache:
    """The traces of one workload at several values of a knob, for devices that run the same kernels.

    Attributes:
        workload: The workload that is trained; its value of the knob is replaced.
        optimizers: The optimizers, which are traced together and known by their index.
        recipe: The training recipe.
        batch_size: The batch size, where it is not the knob.
        vary: The knob and the values that may be tried.
        target: A device that stands for all devices that run the same kernels.
        blocks: For each optimizer and value, the traced blocks.
        parameters: For each value, the number of parameters of the model.
        weights: For each value, the size of the parameters in bytes.
        failures: For each optimizer that cannot train the model, the reason.
        refused: For each value that the workload does not take, the reason.
    """

    workload: WorkloadSpec
    optimizers: Sequence[OptimizerSpec]
    recipe: Recipe
    batch_size: int
    vary: Vary
    target: Target
    blocks: dict[int, dict[int, TracedBlocks]] = field(default_factory=dict)
    parameters: dict[int, int] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    _peaks: dict[tuple[int, int], DevicePeak] = field(default_factory=dict)
    _within: dict[tuple[int, int, int], DevicePeak] = field(default_factory=dict)
    _guessed: dict[tuple[int, int, int, int], bool] = field(default_factory=dict)

    @no_garbage_collection()
    def add(self, value: int, numbers: Sequence[int] | None = None) -> None:
        """Trace the training at a value and store it, or store why the workload refuses the value.

        Args:
            value: The value of the knob.
            numbers: The indices of the optimizers to trace; all of them by default.
        """
        chosen = range(len(self.optimizers)) if numbers is None else numbers
        workload, batch_size = with_value(self.workload, self.batch_size, self.vary.knob, value)
        semantics = semantics_of(self.target)
        try:
            if ":" not in workload.model:  # a built-in model is quick to load and refuses a wrong value at once
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
            self.blocks.setdefault(number, {})[value] = TracedBlocks.of(value, trace_of(fake, self.target))

    def peak(self, optimizer: int, value: int) -> DevicePeak:
        """Return the peak of a traced training on a device whose memory has no limit.

        Args:
            optimizer: The index of the optimizer.
            value: The value of the knob, which must have been traced.
        """
        key = optimizer, value
        if key not in self._peaks:
            self._peaks[key] = self.blocks[optimizer][value].peak(self.target)
        return self._peaks[key]

    def peak_within(self, optimizer: int, value: int, capacity_bytes: int) -> DevicePeak:
        """Return the peak of a traced training on a device with a limited memory.

        Args:
            optimizer: The index of the optimizer.
            value: The value of the knob, which must have been traced.
            capacity_bytes: The memory of the device, in bytes.
        """
        key = optimizer, value, capacity_bytes
        if key not in self._within:
            unlimited = self.peak(optimizer, value)
            self._within[key] = self.blocks[optimizer][value].peak_within(self.target, capacity_bytes, unlimited)
        return self._within[key]

    def guess(self, optimizer: int, capacity_bytes: int, low: int, high: int) -> int:
        """Estimate the largest value that fits, from the values that were traced.

        Args:
            optimizer: The index of the optimizer.
            capacity_bytes: The memory to fill, in bytes.
            low: The smallest value to return.
            high: The largest value to return.
        """
        traced = self.blocks[optimizer]
        if len(traced) < 2:
            return min(high, 2 * max(traced))
        if blocks_at(high, [blocks.tensors_only for blocks in traced.values()]) is None:
            high = max(low, min(high, _FURTHEST * max(traced)))
        values = self.vary.between(low, high)
        bound = _last_true(0, len(values) - 1, lambda index: self._may_fit(optimizer, values[index], capacity_bytes))
        return values[self._step_down(bound, lambda index: self._should_fit(optimizer, values[index], capacity_bytes))]

    def _may_fit(self, optimizer: int, value: int, capacity_bytes: int) -> bool:
        """Return whether the tensors alone would fit, without workspaces and without the allocator's rounding."""
        tensors_only = blocks_at(value, [blocks.tensors_only for blocks in self.blocks[optimizer].values()])
        if tensors_only is None:
            return self._should_fit(optimizer, value, capacity_bytes)
        return tensors_only.allocated_bytes() <= capacity_bytes

    def _should_fit(self, optimizer: int, value: int, capacity_bytes: int) -> bool:
        key = optimizer, value, capacity_bytes, len(self.blocks[optimizer])
        if key not in self._guessed:
            self._guessed[key] = self._guess_fits(optimizer, value, capacity_bytes)
        return self._guessed[key]

    def _guess_fits(self, optimizer: int, value: int, capacity_bytes: int) -> bool:
        """Estimate whether a value fits, as exactly as the traces allow.

        Where all traces agree in their order of events, the scaled blocks are replayed. Where only the tensors agree,
        because kernels take other workspaces, the tensors are replayed and the workspaces extrapolated along a line.
        Where the tensors differ as well, the bytes in use are extrapolated along a line.
        """
        traced = self.blocks[optimizer]
        blocks = blocks_at(value, list(traced.values()))
        if blocks is not None:
            return blocks.fits(self.target, capacity_bytes)
        tensors_only = blocks_at(value, [one.tensors_only for one in traced.values()])
        if tensors_only is None:
            used = self._by_line(optimizer, value, self._used)
            return used + self._unused(optimizer, value, capacity_bytes) <= capacity_bytes
        return tensors_only.fits(self.target, capacity_bytes - self._by_line(optimizer, value, self._scratch))

    def _used(self, optimizer: int, value: int) -> int:
        """Return the largest number of bytes in use at once in a traced training."""
        return self.blocks[optimizer][value].allocated_bytes(SMALLEST_BLOCK if self.target.kind == "cuda" else 1)

    def _unused(self, optimizer: int, value: int, capacity_bytes: int) -> int:
        """Estimate how many bytes are reserved but not in use at the peak.

        The estimate is that of the nearest trace that fits; it is 0 if a replay has shown that the allocator releases
        its unused segments before it runs out of memory.
        """
        traced = self.blocks[optimizer]
        over = [one for one in traced if self.peak(optimizer, one).bytes > capacity_bytes]
        if any(self.peak_within(optimizer, one, capacity_bytes).fits for one in over):
            return 0
        nearest = min((one for one in traced if one not in over), key=lambda one: abs(one - value), default=None)
        return 0 if nearest is None else self.peak(optimizer, nearest).bytes - self._used(optimizer, nearest)

    def _scratch(self, optimizer: int, value: int) -> int:
        """Return how many bytes the workspaces of kernels add to the peak of a traced training."""
        return self.peak(optimizer, value).bytes - self.blocks[optimizer][value].tensors_only.peak(self.target).bytes

    def _by_line(self, optimizer: int, value: int, height: Callable[[int, int], int]) -> int:
        """Extrapolate a figure of the traces to another value, along a straight line.

        The line goes through the nearest traces on both sides of the value, or else through the two nearest traces.
        """
        nearest = sorted(self.blocks[optimizer], key=lambda traced: abs(traced - value))
        beyond = (traced for traced in nearest if (traced > value) != (nearest[0] > value))
        first, second = nearest[0], next(beyond, nearest[1])
        begin, end = height(optimizer, first), height(optimizer, second)
        return begin + round((end - begin) / (second - first) * (value - first))

    def _step_down(self, bound: int, fits: Callable[[int], bool]) -> int:
        """Return the largest index up to `bound` that fits, or 0 if none does.

        The steps downwards start with 1 and double: what is reserved is not much more than what is in use, so that the
        answer lies close to the bound.
        """
        failing, stride = bound + 1, 1
        while bound > 0 and not fits(bound):
            failing, bound, stride = bound, max(0, bound - stride), 2 * stride
        return _last_true(bound, failing - 1, fits)


def _last_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the last value from `low` to `high` for which `holds` is true, by bisection; `low` if it never is.

    `holds` must be true up to some value and false after it.
    """
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
