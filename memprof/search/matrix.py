"""Matrices of optimizers and devices, filled by prediction: cut into jobs for several workers and put together."""

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

OnForecast = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Place:
    """A device to fill: its name, what is usable of it in bytes, and what decides which kernels run there."""

    name: str
    usable_bytes: int
    kernels: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """The largest value of one knob, for optimizers on devices.

    Attributes:
        workload: what is trained.
        optimizers: rows; those that need about as much are best neighbours, as they share traces.
        places: columns.
        recipe: how it is trained.
        batch_size: where that is not the knob.
        vary: the knob.
        present: its value that the user trains with.
    """

    workload: WorkloadSpec
    optimizers: Sequence[OptimizerSpec]
    places: Sequence[Place]
    recipe: Recipe
    batch_size: int
    vary: Vary
    present: int


@dataclass
class Matrix:
    """The answers to a question so far.

    Attributes:
        found: by device and optimizer spec, the answer or the reason why there is none.
        refused: by device, values that the workload does not take.
        evaluations: values that were traced.
    """

    found: dict[tuple[str, str], FitAnswer | str] = field(default_factory=dict)
    refused: dict[str, tuple[int, ...]] = field(default_factory=dict)
    evaluations: int = 0


@dataclass(frozen=True)
class _Part:
    """What one worker does: some rows and columns of a question; the columns have the same kernels."""

    question: int
    optimizers: tuple[OptimizerSpec, ...]
    places: tuple[Place, ...]

    @property
    def cells(self) -> int:
        return len(self.optimizers) * len(self.places)

    @property
    def keys(self) -> list[tuple[str, str]]:
        return [(place.name, optimizer.text) for place in self.places for optimizer in self.optimizers]

    def halves(self) -> list[_Part]:
        """Return two parts, by columns if there are several: all optimizers share a trace of the model."""
        if len(self.places) > 1:
            middle = len(self.places) // 2
            return [replace(self, places=self.places[:middle]), replace(self, places=self.places[middle:])]
        middle = len(self.optimizers) // 2
        halves = self.optimizers[:middle], self.optimizers[middle:]
        return [replace(self, optimizers=half) for half in halves]


class Forecasts:
    """Questions, and their matrices as they are filled.

    Args:
        questions: those that take longest first.
        on_step: told what is traced, how many cells are finished, and how many there are; from one thread at a time.
        on_found: told that a cell is finished, likewise.

    Attributes:
        matrices: one for each question; what is finished stands there whatever happens to the rest.
    """

    def __init__(
        self, questions: Sequence[Question], on_step: OnForecast, on_found: Callable[[], None] | None = None
    ) -> None:
        self.matrices = [Matrix() for _ in questions]
        self._questions = questions
        self._on_step = on_step
        self._on_found = on_found
        self._lock = Lock()
        self._cells = sum(len(question.optimizers) * len(question.places) for question in questions)

    def run(self, workers: Workers) -> None:
        """Fill the matrices; a worker that dies leaves the reason in its cells.

        Raises:
            UsageError: the workload cannot be predicted, or takes no value of the range.
            MemprofError: not a single cell could be filled.
        """
        parts = [part for number in range(len(self._questions)) for part in self._parts(number, len(workers.launchers))]
        answers = workers.run(
            [self._job(part) for part in parts],
            lambda number, step: self._note(parts[number], step),
            tolerates=lambda error: error.exit_code == ExitCode.FAILED,
        )
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, MemprofError):
                self._lose(part, answer)
            else:
                assert isinstance(answer, FitMatrix)
                self._take(part, answer)
        if not any(isinstance(found, FitAnswer) for matrix in self.matrices for found in matrix.found.values()):
            for error in answers:
                if isinstance(error, MemprofError):
                    raise error

    def _parts(self, number: int, workers: int) -> list[_Part]:
        """Return a question's cells by kernels, the largest parts halved while workers would have nothing to do."""
        question = self._questions[number]
        by_kernels: dict[str, list[Place]] = {}
        for place in sorted(question.places, key=lambda place: place.usable_bytes):
            by_kernels.setdefault(place.kernels, []).append(place)
        parts = [_Part(number, tuple(question.optimizers), tuple(places)) for places in by_kernels.values()]
        parts.sort(key=lambda part: part.cells, reverse=True)
        while len(parts) < workers and parts[0].cells > 1:
            parts = sorted([*parts[0].halves(), *parts[1:]], key=lambda part: part.cells, reverse=True)
        return parts

    def _job(self, part: _Part) -> FitForecast:
        question = self._questions[part.question]
        return FitForecast(
            workload=question.workload,
            optimizers=list(part.optimizers),
            recipe=question.recipe,
            batch_size=question.batch_size,
            vary=question.vary,
            present=question.present,
            device=part.places[0].name,
            capacities=[place.usable_bytes for place in part.places],
        )

    def _note(self, part: _Part, step: Step) -> None:
        with self._lock:
            if isinstance(step.found, FitFound):
                self._enter(part, part.keys[step.found.cell], step.found)
            names = ", ".join(place.name for place in part.places)
            self._on_step(f"{names}  {step.label}", sum(map(len, self._found())), self._cells)

    def _enter(self, part: _Part, key: tuple[str, str], found: FitFound) -> None:
        answer = found.reason if found.answer is None else found.answer
        self.matrices[part.question].found[key] = answer or "no reason was given"
        if self._on_found is not None:
            self._on_found()

    def _found(self) -> Iterator[dict[tuple[str, str], FitAnswer | str]]:
        return (matrix.found for matrix in self.matrices)

    def _take(self, part: _Part, answer: FitMatrix) -> None:
        matrix = self.matrices[part.question]
        matrix.evaluations += answer.evaluations
        matrix.refused.update({place.name: tuple(answer.refused) for place in part.places})

    def _lose(self, part: _Part, error: MemprofError) -> None:
        matrix = self.matrices[part.question]
        for key in part.keys:
            matrix.found.setdefault(key, str(error))
