"""The search by prediction: every optimizer on every device with the same kernels, over shared traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel

from memprof.devices.resolve import find_target
from memprof.documents.comparison import FitAnswer, FitPoint
from memprof.documents.jobs import FitForecast, FitFound, FitMatrix, Step
from memprof.documents.vary import BATCH, Vary
from memprof.errors import UsageError
from memprof.search.bracket import UNEVEN, Search
from memprof.search.scaled_blocks import Need
from memprof.search.trace_cache import Traces
from memprof.training.micro_batches import step_samples
from memprof.units import format_size

Tell = Callable[[int], None]
TellFound = Callable[[int, FitAnswer | None, str | None], None]
# Farther from what an optimizer asks for, as a share of it, a trace tells it too little to be worth its own steps.
_NEAR = 1 / 32


@dataclass(frozen=True)
class Cell:
    """One optimizer on one device: its bracket, and the value it asks for."""

    optimizer: int
    capacity_bytes: int
    search: Search


def first_values(vary: Vary, present: int) -> list[int]:
    """Return the values to begin with: the present one, and half of it, which tells the slope.

    Half, not 1: PyTorch takes other ways for a batch of one sample.
    """
    nearest = vary.below(max(vary.low, present))
    half = vary.below(max(vary.low, nearest // 2))
    return [nearest, half if half != nearest else vary.below(2 * nearest)]


class Survey:
    """Fills the matrix of optimizers and capacities.

    Args:
        traces: nothing is traced yet.
        capacities: in bytes, of devices with these kernels.
        present: the value of the knob that the user trains with, or the workload's default.
        tell: told the value of every trace.
        tell_found: told the number of every cell that is finished, its answer, and why there is none.
    """

    def __init__(
        self,
        traces: Traces,
        capacities: Sequence[int],
        present: int,
        tell: Tell | None = None,
        tell_found: TellFound | None = None,
    ) -> None:
        self.traces = traces
        self._present = present
        self._tell = tell
        self._tell_found = tell_found
        self._finished: dict[int, FitAnswer | None] = {}
        self._firsts = first_values(traces.vary, present)
        self.cells = [
            Cell(optimizer, capacity, Search(traces.vary, self._firsts))
            for capacity in capacities
            for optimizer in range(len(traces.optimizers))
        ]

    def run(self) -> list[FitAnswer | None]:
        """Return an answer for each cell, optimizers within capacities; None for an optimizer that cannot train.

        Raises:
            UsageError: the workload cannot be predicted, or takes no value of the range.
        """
        wanted: dict[int, int] = {}
        while True:
            self._ask(wanted)
            if not wanted:
                break
            asked = Counter(wanted.values())
            value = min(asked, key=lambda value: (-asked[value], value))
            if self._tell is not None:
                self._tell(value)
            self.traces.take(value, self._interested(value, wanted))
            self._check(value)
            self._note(value)
        return [self._finished[number] for number in range(len(self.cells))]

    def _ask(self, wanted: dict[int, int]) -> None:
        """Let every cell say which value it needs next; a standing wish is kept until it is met or overtaken."""
        for number, cell in enumerate(self.cells):
            if number in wanted and self._stands(cell, wanted[number]):
                continue
            wanted.pop(number, None)
            if number in self._finished:
                continue
            value = None if cell.optimizer in self.traces.failures else cell.search.next_value(self._guess_of(cell))
            if value is None:
                self._finish(number)
            else:
                wanted[number] = value

    def _finish(self, number: int) -> None:
        cell = self.cells[number]
        self._finished[number] = answer = self._answer(cell)
        if self._tell_found is not None:
            self._tell_found(number, answer, self.traces.failures.get(cell.optimizer))

    def _interested(self, value: int, wanted: dict[int, int]) -> list[int]:
        """Return the optimizers that ask for the value or about it: others' steps need not be traced."""
        near = (n for n, wish in wanted.items() if abs(wish - value) <= wish * _NEAR)
        asking = (self.cells[n] for n in near if wanted[n] == value or self._stands(self.cells[n], value))
        return sorted({cell.optimizer for cell in asking})

    def _stands(self, cell: Cell, value: int) -> bool:
        search = cell.search
        if cell.optimizer in self.traces.failures or value in search.refused or value in search.tried:
            return False
        return (search.fitting or 0) < value and (search.failing is None or value < search.failing)

    def _guess_of(self, cell: Cell) -> Callable[[int, int], int]:
        return lambda low, high: self.traces.guess(cell.optimizer, cell.capacity_bytes, low, high)

    def _check(self, value: int) -> None:
        """Refuse to search where the value that the user trains with cannot be predicted, or nothing is taken."""
        traces = self.traces
        if value not in traces.refused or traces.parameters:
            return
        vary = traces.vary
        if vary.knob == BATCH or value == self._present:
            raise UsageError(traces.refused[value])
        if all(one in traces.refused for one in vary.values):
            raise UsageError(f"--vary {vary}: no value is taken; {vary.knob}={value}: {traces.refused[value]}")

    def _note(self, value: int) -> None:
        traces = self.traces
        for cell in self.cells:
            if value in traces.refused:
                cell.search.note(value, None)
            elif value in traces.blocks.get(cell.optimizer, {}):
                cell.search.note(value, self._within(cell, value).fits)

    def _within(self, cell: Cell, value: int) -> Need:
        return self.traces.need_within(cell.optimizer, value, cell.capacity_bytes)

    def _answer(self, cell: Cell) -> FitAnswer | None:
        traces, search = self.traces, cell.search
        if cell.optimizer in traces.failures:
            return None
        value, following = search.fitting, search.failing
        binding = self._within(cell, following if following is not None else search.tried[-1])
        return FitAnswer(
            knob=traces.vary.knob,
            value=value or 0,
            parameters=traces.parameters[value] if value is not None and traces.vary.knob != BATCH else None,
            peak_bytes=self._within(cell, value).bytes if value is not None else None,
            next_value=following,
            next_peak_bytes=traces.need(cell.optimizer, following).bytes if following is not None else None,
            phase=binding.phase,
            method="predicted",
            **self._batch(value),
            points=[FitPoint(value=one, peak_bytes=traces.need(cell.optimizer, one).bytes) for one in search.tried],
            notes=self._notes(cell),
        )

    def _batch(self, value: int | None) -> dict[str, int]:
        if not value or self.traces.vary.knob != BATCH:
            return {}
        micro_batches, samples = step_samples(self.traces.recipe, self.traces.vary, value)
        return {"accumulate": micro_batches, "global_batch": samples}

    def _notes(self, cell: Cell) -> list[str]:
        traces, search = self.traces, cell.search
        knob, value, notes = traces.vary.knob, search.fitting, list[str]()
        if value is None and traces.weights[search.tried[0]] > cell.capacity_bytes:
            notes.append(f"The weights alone take {format_size(traces.weights[search.tried[0]])}.")
        if search.failing is None and value is not None:
            notes.append(f"Every value up to {knob}={value}, the end of the range, fits.")
        if traces.refused:
            refused, reason = next(reversed(traces.refused.items()))
            notes.append(f"Values of {knob} that the model refuses were left out, such as {refused}: {reason}.")
        if any(len(set(blocks.batches)) > 1 for blocks in traces.blocks[cell.optimizer].values()):
            notes.append(UNEVEN)
        smaller = [one for one in search.tried if one < (value or 0) and not self._within(cell, one).fits]
        if smaller:
            notes.append(f"Memory falls as {knob} grows: {smaller[-1]} does not fit, {value} does.")
        elif knob != BATCH and (falls := self._irregular(cell)):
            regular = f"--vary {knob}=LO:HI:STEP keeps to regular values"
            notes.append(
                f"Memory does not grow with {knob} throughout, {falls[1]} needs less than {falls[0]}: {regular}."
            )
        return notes

    def _irregular(self, cell: Cell) -> tuple[int, int] | None:
        """Return two values that were tried, of which the larger needs clearly less."""
        needs = [(value, self.traces.need(cell.optimizer, value).bytes) for value in cell.search.tried]
        return next(((a, b) for (a, x), (b, y) in pairwise(needs) if y < x * 0.98), None)


def run(job: FitForecast, send: Callable[[BaseModel], None]) -> FitMatrix:
    """Do a worker's job: search, and tell about every trace and every cell that is finished.

    Raises:
        UsageError: the workload cannot be predicted, or takes no value of the range.
    """

    def tell(value: int) -> None:
        send(Step(stage="step", label=f"{job.vary.knob}={value}"))

    def tell_found(cell: int, answer: FitAnswer | None, reason: str | None) -> None:
        send(Step(stage="step", found=FitFound(cell=cell, answer=answer, reason=reason)))

    target = find_target(job.device)
    traces = Traces(job.workload, job.optimizers, job.recipe, job.batch_size, job.vary, target)
    Survey(traces, job.capacities, job.present, tell, tell_found).run()
    return FitMatrix(evaluations=len(traces.parameters), refused=sorted(traces.refused))
