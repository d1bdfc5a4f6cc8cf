"""Search by prediction: finds the largest value for every optimizer on devices that run the same kernels.

All optimizers and devices share the traces, so that a value is traced once however many cells ask for it.
"""

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
from memprof.search.bracket import UNEVEN, Bracket
from memprof.search.scaled_blocks import DevicePeak
from memprof.search.trace_cache import TraceCache
from memprof.training.micro_batches import step_samples
from memprof.units import format_size

OnTrace = Callable[[int], None]
OnCell = Callable[[int, FitAnswer | None, str | None], None]
# An optimizer joins the trace of a value that another one asked for only if that value is this close to the value that
# it wants itself, as a share of the latter. A trace farther away would tell it too little for the time that it takes.
_NEAR = 1 / 32


@dataclass(frozen=True)
class SearchCell:
    """One cell of the matrix: one optimizer on one device.

    Attributes:
        optimizer: The index of the optimizer.
        capacity_bytes: The memory of the device to fill, in bytes.
        bracket: The search bracket of this cell.
    """

    optimizer: int
    capacity_bytes: int
    bracket: Bracket


def first_values(vary: Vary, present: int) -> list[int]:
    """Return the values to begin with: the user's present value, and half of it to measure the slope.

    The second value is half and not 1, because PyTorch runs other kernels for a batch of one sample.

    Args:
        vary: The knob and the values that may be tried.
        present: The value of the knob that the user trains with, or the workload's default.
    """
    nearest = vary.below(max(vary.low, present))
    half = vary.below(max(vary.low, nearest // 2))
    return [nearest, half if half != nearest else vary.below(2 * nearest)]


class PredictedSearch:
    """Searches all cells of a matrix of optimizers and capacities together.

    Args:
        traces: The cache that traces the workload; it starts empty.
        capacities: The memory to fill on each device, in bytes. All devices run the same kernels.
        present: The value of the knob that the user trains with, or the workload's default.
        on_trace: Called with each value before it is traced.
        on_cell: Called for each finished cell with its index, its answer, and the reason if there is no answer.
    """

    def __init__(
        self,
        traces: TraceCache,
        capacities: Sequence[int],
        present: int,
        on_trace: OnTrace | None = None,
        on_cell: OnCell | None = None,
    ) -> None:
        self.traces = traces
        self._present = present
        self._on_trace = on_trace
        self._on_cell = on_cell
        self._finished: dict[int, FitAnswer | None] = {}
        self._firsts = first_values(traces.vary, present)
        self.cells = [
            SearchCell(optimizer, capacity, Bracket(traces.vary, self._firsts))
            for capacity in capacities
            for optimizer in range(len(traces.optimizers))
        ]

    def run(self) -> list[FitAnswer | None]:
        """Run the search and return the answer of each cell.

        Returns:
            The answers of all optimizers for the first capacity, then for the second, and so on. The answer is None
            for an optimizer that cannot train the model.

        Raises:
            UsageError: The workload cannot be predicted, or it takes no value of the range.
        """
        wanted: dict[int, int] = {}
        while True:
            self._ask(wanted)
            if not wanted:
                break
            asked = Counter(wanted.values())
            value = min(asked, key=lambda value: (-asked[value], value))
            if self._on_trace is not None:
                self._on_trace(value)
            self.traces.add(value, self._interested(value, wanted))
            self._check(value)
            self._note(value)
        return [self._finished[number] for number in range(len(self.cells))]

    def _ask(self, wanted: dict[int, int]) -> None:
        """Ask every cell for the value that it wants next.

        A cell keeps its wish until that value was tried or lies outside its bracket.
        """
        for number, cell in enumerate(self.cells):
            if number in wanted and self._stands(cell, wanted[number]):
                continue
            wanted.pop(number, None)
            if number in self._finished:
                continue
            value = None if cell.optimizer in self.traces.failures else cell.bracket.next_value(self._guess_of(cell))
            if value is None:
                self._finish(number)
            else:
                wanted[number] = value

    def _finish(self, number: int) -> None:
        cell = self.cells[number]
        self._finished[number] = answer = self._answer(cell)
        if self._on_cell is not None:
            self._on_cell(number, answer, self.traces.failures.get(cell.optimizer))

    def _interested(self, value: int, wanted: dict[int, int]) -> list[int]:
        """Return the optimizers that want this value or one close to it; the others' steps need not be traced."""
        near = (n for n, wish in wanted.items() if abs(wish - value) <= wish * _NEAR)
        asking = (self.cells[n] for n in near if wanted[n] == value or self._stands(self.cells[n], value))
        return sorted({cell.optimizer for cell in asking})

    def _stands(self, cell: SearchCell, value: int) -> bool:
        bracket = cell.bracket
        if cell.optimizer in self.traces.failures or value in bracket.refused or value in bracket.tried:
            return False
        return (bracket.fitting or 0) < value and (bracket.failing is None or value < bracket.failing)

    def _guess_of(self, cell: SearchCell) -> Callable[[int, int], int]:
        return lambda low, high: self.traces.guess(cell.optimizer, cell.capacity_bytes, low, high)

    def _check(self, value: int) -> None:
        """Stop if the value that the user trains with cannot be predicted, or if every value is refused."""
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
                cell.bracket.note(value, None)
            elif value in traces.blocks.get(cell.optimizer, {}):
                cell.bracket.note(value, self._within(cell, value).fits)

    def _within(self, cell: SearchCell, value: int) -> DevicePeak:
        return self.traces.peak_within(cell.optimizer, value, cell.capacity_bytes)

    def _answer(self, cell: SearchCell) -> FitAnswer | None:
        traces, bracket = self.traces, cell.bracket
        if cell.optimizer in traces.failures:
            return None
        value, following = bracket.fitting, bracket.failing
        binding = self._within(cell, following if following is not None else bracket.tried[-1])
        return FitAnswer(
            knob=traces.vary.knob,
            value=value or 0,
            parameters=traces.parameters[value] if value is not None and traces.vary.knob != BATCH else None,
            peak_bytes=self._within(cell, value).bytes if value is not None else None,
            next_value=following,
            next_peak_bytes=traces.peak(cell.optimizer, following).bytes if following is not None else None,
            phase=binding.phase,
            method="predicted",
            **self._batch(value),
            points=[FitPoint(value=one, peak_bytes=traces.peak(cell.optimizer, one).bytes) for one in bracket.tried],
            notes=self._notes(cell),
        )

    def _batch(self, value: int | None) -> dict[str, int]:
        if not value or self.traces.vary.knob != BATCH:
            return {}
        micro_batches, samples = step_samples(self.traces.recipe, self.traces.vary, value)
        return {"accumulate": micro_batches, "global_batch": samples}

    def _notes(self, cell: SearchCell) -> list[str]:
        traces, bracket = self.traces, cell.bracket
        knob, value, notes = traces.vary.knob, bracket.fitting, list[str]()
        if value is None and traces.weights[bracket.tried[0]] > cell.capacity_bytes:
            notes.append(f"The weights alone take {format_size(traces.weights[bracket.tried[0]])}.")
        if bracket.failing is None and value is not None:
            notes.append(f"Every value up to {knob}={value}, the end of the range, fits.")
        if traces.refused:
            refused, reason = next(reversed(traces.refused.items()))
            notes.append(f"Values of {knob} that the model refuses were left out, such as {refused}: {reason}.")
        if any(len(set(blocks.batches)) > 1 for blocks in traces.blocks[cell.optimizer].values()):
            notes.append(UNEVEN)
        smaller = [one for one in bracket.tried if one < (value or 0) and not self._within(cell, one).fits]
        if smaller:
            notes.append(f"Memory falls as {knob} grows: {smaller[-1]} does not fit, {value} does.")
        elif knob != BATCH and (falls := self._irregular(cell)):
            regular = f"--vary {knob}=LO:HI:STEP keeps to regular values"
            notes.append(
                f"Memory does not grow with {knob} throughout, {falls[1]} needs less than {falls[0]}: {regular}."
            )
        return notes

    def _irregular(self, cell: SearchCell) -> tuple[int, int] | None:
        """Return two neighbouring trials of which the larger value needs clearly less memory (2 % or more), or None."""
        peaks = [(value, self.traces.peak(cell.optimizer, value).bytes) for value in cell.bracket.tried]
        return next(((a, b) for (a, x), (b, y) in pairwise(peaks) if y < x * 0.98), None)


def run(job: FitForecast, send: Callable[[BaseModel], None]) -> FitMatrix:
    """Run a search as the job of a worker.

    Args:
        job: The part of the matrix to search.
        send: Sends a message for every trace and for every finished cell.

    Returns:
        The number of values that were traced, and the values that the workload refuses. The answers themselves were
        sent as messages.

    Raises:
        UsageError: The workload cannot be predicted, or it takes no value of the range.
    """

    def on_trace(value: int) -> None:
        send(Step(stage="step", label=f"{job.vary.knob}={value}"))

    def on_cell(cell: int, answer: FitAnswer | None, reason: str | None) -> None:
        send(Step(stage="step", found=FitFound(cell=cell, answer=answer, reason=reason)))

    target = find_target(job.device)
    traces = TraceCache(job.workload, job.optimizers, job.recipe, job.batch_size, job.vary, target)
    PredictedSearch(traces, job.capacities, job.present, on_trace, on_cell).run()
    return FitMatrix(evaluations=len(traces.parameters), refused=sorted(traces.refused))
