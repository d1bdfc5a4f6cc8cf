"""The work behind `memprof fit`: predict the whole matrix, then prove by training what can be trained here."""

from __future__ import annotations

from collections.abc import Callable

from memprof.devices.margin import usable_bytes
from memprof.documents.comparison import FitAnswer
from memprof.documents.fit import Evaluations, FitCell, FitDevice, FitReport
from memprof.documents.jobs import DeviceFact, Findings, Inquiry
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.documents.vary import BATCH, check_knob
from memprof.errors import ExitCode, MemprofError, UsageError
from memprof.prediction.accuracy import standing
from memprof.search.bracket import UNTRAINED
from memprof.search.by_training_job import Prover
from memprof.search.matrix import Forecasts, Place, Question
from memprof.search.request import FitRequest
from memprof.workers.launcher import Launcher
from memprof.workers.pool import Workers
from memprof.workers.progress import OnProgress, Teller

OnReport = Callable[[FitReport], None]


def find_fits(
    request: FitRequest,
    on_progress: OnProgress | None = None,
    launcher: Launcher | None = None,
    on_report: OnReport | None = None,
) -> FitReport:
    """Return the largest value of a knob for each optimizer on each device.

    Args:
        request: what is to be found.
        on_progress: told about every evaluation.
        launcher: a fork server that runs already; those that are needed are started if not given.
        on_report: given the report so far after every finished cell.

    Raises:
        UsageError: an argument, the workload or the recipe is at fault.
        MemprofError: something failed that has to do with no single optimizer.
    """
    with Workers(len(request.devices), launcher) as workers:
        return _Study(request, workers, on_progress, on_report).run()


def device_of(fact: DeviceFact, budget: int | None, margin: str) -> FitDevice:
    """Return a device with what is usable of it.

    Args:
        fact: what a worker says of it.
        budget: in place of its memory, in bytes.
        margin: to leave free.

    Raises:
        UsageError: the margin is none, or leaves nothing.
    """
    capacity = fact.capacity_bytes if budget is None else budget
    return FitDevice(
        name=fact.name,
        simulated=fact.simulated,
        capacity_bytes=capacity,
        usable_bytes=usable_bytes(capacity, margin),
        source="budget" if budget is not None else "catalog" if fact.simulated else "device",
    )


class _Study:
    """A matrix as it is filled."""

    def __init__(
        self, request: FitRequest, workers: Workers, on_progress: OnProgress | None, on_report: OnReport | None
    ) -> None:
        self._request = request
        self._workers = workers
        self._teller = Teller(on_progress)
        self._on_report = on_report
        self._unpredictable: str | None = None
        self._proven: dict[tuple[str, str], FitCell] = {}

    def run(self) -> FitReport:
        self._inquire()
        self._predict()
        if self._request.confirm:
            self._prove()
        return self._report()

    def _inquire(self) -> None:
        """Check everything that can be checked without a trace."""
        request, launcher = self._request, self._workers.launchers[0]
        found = launcher.run(
            Inquiry(
                workload=request.workload,
                optimizers=request.optimizers,
                devices=request.devices,
                world_size=request.recipe.world_size,
                command=request.command,
            )
        )
        assert isinstance(found, Findings)
        if len({fact.name for fact in found.devices}) < len(found.devices):
            raise UsageError("a device is given twice; keep one of each")
        self._devices = [device_of(fact, request.budget, request.margin) for fact in found.devices]
        check_knob(request.vary, found.name, found.knobs)
        self._found = found
        self._prover = Prover(request, self._present(), launcher, self._teller)
        kernels = {fact.name: fact.kernels for fact in found.devices}
        places = [Place(device.name, device.usable_bytes, kernels[device.name]) for device in self._devices]
        self._forecasts = Forecasts([self._question(places)], self._tell_forecast, self._keep)

    def _present(self) -> int:
        """Return the value of the knob that the user trains with, or the workload's default."""
        knob = self._request.vary.knob
        return self._request.batch_size if knob == BATCH else int(self._found.knobs[knob])

    def _question(self, places: list[Place]) -> Question:
        return Question(
            workload=self._request.workload,
            optimizers=self._request.optimizers,
            places=places,
            recipe=self._request.recipe,
            batch_size=self._request.batch_size,
            vary=self._request.vary,
            present=self._present(),
        )

    def _tell_forecast(self, label: str, finished: int, cells: int) -> None:
        self._teller.tell(label, "predict", stage="step", step=finished, steps=cells)

    def _predict(self) -> None:
        self._teller.begin(self._found.name, "predict")
        try:
            self._forecasts.run(self._workers)
        except MemprofError as error:
            if error.exit_code != ExitCode.USAGE or not self._all_can_be_trained:
                raise
            self._unpredictable = str(error)
            return
        self._teller.tell(f"{len(self._keys)} cells predicted", "predict", stage="done")

    @property
    def _keys(self) -> list[tuple[FitDevice, OptimizerSpec]]:
        return [(device, optimizer) for device in self._devices for optimizer in self._request.optimizers]

    @property
    def _all_can_be_trained(self) -> bool:
        return self._request.confirm and not any(device.simulated for device in self._devices)

    def _prove(self) -> None:
        """Train what can be trained here, cell by cell."""
        cells = [(device, optimizer) for device, optimizer in self._keys if not device.simulated]
        self._teller.expect(2 * len(cells))  # an answer and its successor
        for device, optimizer in cells:
            predicted = self._predicted(device, optimizer)
            if not isinstance(predicted, str):
                self._proven[device.name, optimizer.text] = self._prove_one(device, optimizer, predicted)
                self._keep()

    def _prove_one(self, device: FitDevice, optimizer: OptimizerSpec, predicted: FitAnswer | None) -> FitCell:
        refused = self._forecasts.matrices[0].refused.get(device.name, ())
        cell = FitCell(optimizer=optimizer.text, device=device.name)
        try:
            answer = self._prover.prove(device, optimizer, predicted, refused)
        except MemprofError as error:
            if error.exit_code == ExitCode.USAGE:
                raise
            return cell.model_copy(update={"reason": str(error)})
        reason = None if answer is not None else f"no two values could be trained; {self._unpredictable}"
        return cell.model_copy(update={"answer": answer, "reason": reason})

    def _predicted(self, device: FitDevice, optimizer: OptimizerSpec) -> FitAnswer | str | None:
        return self._forecasts.matrices[0].found.get((device.name, optimizer.text))

    def _keep(self) -> None:
        if self._on_report is not None:
            self._on_report(self._report())

    def _report(self) -> FitReport:
        cells = [self._cell(device, optimizer) for device, optimizer in self._keys]
        return FitReport(
            environment=self._found.environment,
            workload=self._found.workload_info(self._request.workload, self._request.batch_size),
            recipe=self._request.recipe,
            vary=self._request.vary,
            margin=self._request.margin,
            devices=self._devices,
            cells=cells,
            evaluations=Evaluations(predicted=self._forecasts.matrices[0].evaluations, trained=self._prover.trained),
            notes=self._notes(),
        )

    def _cell(self, device: FitDevice, optimizer: OptimizerSpec) -> FitCell:
        """Return what is known of a cell so far."""
        cell = FitCell(optimizer=optimizer.text, device=device.name)
        if (device.name, optimizer.text) in self._proven:
            return self._proven[device.name, optimizer.text]
        predicted = self._predicted(device, optimizer)
        if predicted is None:
            return cell.model_copy(update={"pending": True})
        if isinstance(predicted, str):
            return cell.model_copy(update={"reason": predicted})
        if self._request.confirm and not device.simulated:
            predicted = predicted.model_copy(update={"notes": [*predicted.notes, UNTRAINED]})
        return cell.model_copy(update={"answer": predicted})

    def _notes(self) -> list[str]:
        notes = [standing()] if any(device.simulated for device in self._devices) else []
        return notes + ([f"Nothing was predicted: {self._unpredictable}"] if self._unpredictable else [])
