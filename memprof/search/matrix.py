"""Fills matrices of optimizers and devices by prediction.

Each matrix is divided into jobs for several workers, and their answers are put together again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

from memprof.documents.comparison import FitAnswer
from memprof.documents.jobs import FitForecast, FitFound, FitMatrix, Step
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import ExitCode, MemprofError
from memprof.workers.pool import Workers

OnCellProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SearchDevice:
    """A device whose memory is to be filled.

    Attributes:
        name: The name of the device.
        usable_bytes: The memory that training may use there, in bytes.
        kernels: A key that is equal for devices that run the same kernels and can therefore share traces.
    """

    name: str
    usable_bytes: int
    kernels: str


@dataclass(frozen=True, kw_only=True)
class MatrixRequest:
    """Asks for the largest value of one knob, for every optimizer on every device.

    Attributes:
        workload: The workload that is trained.
        optimizers: The rows of the matrix. Optimizers that need about the same memory should be neighbours, because
            they can share traces.
        devices: The columns of the matrix.
        recipe: The training recipe.
        batch_size: The batch size, where it is not the knob.
        vary: The knob and the values that may be tried.
        present: The value of the knob that the user trains with, or the workload's default.
    """

    workload: WorkloadSpec
    optimizers: Sequence[OptimizerSpec]
    devices: Sequence[SearchDevice]
    recipe: Recipe
    batch_size: int
    vary: Vary
    present: int


@dataclass
class MatrixResult:
    """The answers that were found so far for one matrix.

    Attributes:
        found: For each device name and optimizer spec, the answer or the reason why there is no answer.
        refused: For each device name, the values that the workload does not take.
        evaluations: The number of values that were traced.
    """

    found: dict[tuple[str, str], FitAnswer | str] = field(default_factory=dict)
    refused: dict[str, tuple[int, ...]] = field(default_factory=dict)
    evaluations: int = 0


@dataclass(frozen=True)
class _MatrixPart:
    """The job of one worker: some rows and columns of one matrix, whose devices all run the same kernels."""

    request: int
    optimizers: tuple[OptimizerSpec, ...]
    devices: tuple[SearchDevice, ...]

    @property
    def cells(self) -> int:
        return len(self.optimizers) * len(self.devices)

    @property
    def keys(self) -> list[tuple[str, str]]:
        return [(device.name, optimizer.text) for device in self.devices for optimizer in self.optimizers]

    def halves(self) -> list[_MatrixPart]:
        """Return this part cut in two, between devices if there are several.

        The optimizers are kept together as long as possible, because they share the traces of the model.
        """
        if len(self.devices) > 1:
            middle = len(self.devices) // 2
            return [replace(self, devices=self.devices[:middle]), replace(self, devices=self.devices[middle:])]
        middle = len(self.optimizers) // 2
        halves = self.optimizers[:middle], self.optimizers[middle:]
        return [replace(self, optimizers=half) for half in halves]


class MatrixPrediction:
    """Fills several matrices by prediction.

    Args:
        requests: The matrices to fill, those that take the longest first.
        on_step: Called with what is being traced, how many cells are finished, and how many cells there are in all.
            Several threads call it, but only one at a time.
        on_found: Called when a cell is finished, also by one thread at a time.

    Attributes:
        matrices: One result for each request. A finished cell stays in its result even if the rest fails.
    """

    def __init__(
        self, requests: Sequence[MatrixRequest], on_step: OnCellProgress, on_found: Callable[[], None] | None = None
    ) -> None:
        self.matrices = [MatrixResult() for _ in requests]
        self._questions = requests
        self._on_step = on_step
        self._on_found = on_found
        self._lock = Lock()
        self._cells = sum(len(request.optimizers) * len(request.devices) for request in requests)

    def run(self, workers: Workers) -> None:
        """Fill the matrices. The cells of a worker that died hold the reason instead of an answer.

        Args:
            workers: The workers that run the jobs.

        Raises:
            UsageError: The workload cannot be predicted, or it takes no value of the range.
            MemprofError: No cell at all could be filled.
        """
        parts = [part for number in range(len(self._questions)) for part in self._parts(number, len(workers.launchers))]
        answers = workers.run(
            [self._job(part) for part in parts],
            lambda number, step: self._note(parts[number], step),
            tolerates=lambda error: error.exit_code == ExitCode.FAILED,
        )
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, MemprofError):
                self._fail(part, answer)
            else:
                assert isinstance(answer, FitMatrix)
                self._take(part, answer)
        if not any(isinstance(found, FitAnswer) for matrix in self.matrices for found in matrix.found.values()):
            for error in answers:
                if isinstance(error, MemprofError):
                    raise error

    def _parts(self, number: int, workers: int) -> list[_MatrixPart]:
        """Divide a request into parts by kernels, and halve the largest parts until every worker has one."""
        request = self._questions[number]
        by_kernels: dict[str, list[SearchDevice]] = {}
        for device in sorted(request.devices, key=lambda device: device.usable_bytes):
            by_kernels.setdefault(device.kernels, []).append(device)
        parts = [_MatrixPart(number, tuple(request.optimizers), tuple(devices)) for devices in by_kernels.values()]
        parts.sort(key=lambda part: part.cells, reverse=True)
        while len(parts) < workers and parts[0].cells > 1:
            parts = sorted([*parts[0].halves(), *parts[1:]], key=lambda part: part.cells, reverse=True)
        return parts

    def _job(self, part: _MatrixPart) -> FitForecast:
        request = self._questions[part.request]
        return FitForecast(
            workload=request.workload,
            optimizers=list(part.optimizers),
            recipe=request.recipe,
            batch_size=request.batch_size,
            vary=request.vary,
            present=request.present,
            device=part.devices[0].name,
            capacities=[device.usable_bytes for device in part.devices],
        )

    def _note(self, part: _MatrixPart, step: Step) -> None:
        with self._lock:
            if isinstance(step.found, FitFound):
                self._enter(part, part.keys[step.found.cell], step.found)
            names = ", ".join(device.name for device in part.devices)
            self._on_step(f"{names}  {step.label}", sum(map(len, self._found())), self._cells)

    def _enter(self, part: _MatrixPart, key: tuple[str, str], found: FitFound) -> None:
        answer = found.reason if found.answer is None else found.answer
        self.matrices[part.request].found[key] = answer or "no reason was given"
        if self._on_found is not None:
            self._on_found()

    def _found(self) -> Iterator[dict[tuple[str, str], FitAnswer | str]]:
        return (matrix.found for matrix in self.matrices)

    def _take(self, part: _MatrixPart, answer: FitMatrix) -> None:
        matrix = self.matrices[part.request]
        matrix.evaluations += answer.evaluations
        matrix.refused.update({device.name: tuple(answer.refused) for device in part.devices})

    def _fail(self, part: _MatrixPart, error: MemprofError) -> None:
        matrix = self.matrices[part.request]
        for key in part.keys:
            matrix.found.setdefault(key, str(error))
