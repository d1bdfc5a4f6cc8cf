"""The work behind `memprof fit`: predicts the whole matrix, then confirms by training what this machine can train."""

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
from memprof.search.confirm import Confirmer
from memprof.search.matrix import MatrixPrediction, MatrixRequest, SearchDevice
from memprof.search.request import FitRequest
from memprof.workers.launcher import Launcher
from memprof.workers.pool import Workers
from memprof.workers.progress import OnProgress, ProgressReporter

OnReport = Callable[[FitReport], None]


def find_fits(
    request: FitRequest,
    on_progress: OnProgress | None = None,
    launcher: Launcher | None = None,
    on_report: OnReport | None = None,
) -> FitReport:
    """Return the largest value of a knob for each optimizer on each device.

    Args:
        request: What to find.
        on_progress: Called with the progress of every evaluation.
        launcher: A fork server that is already running. Without one, as many as are needed are started.
        on_report: Called with the report so far after every finished cell.

    Raises:
        UsageError: An argument, the workload or the recipe is wrong.
        MemprofError: Something failed that is not the fault of a single optimizer.
    """
    with Workers(len(request.devices), launcher) as workers:
        return _FitRun(request, workers, on_progress, on_report).run()


def device_of(fact: DeviceFact, budget: int | None, margin: str) -> FitDevice:
    """Return a device with the memory that training may use there.

    Args:
        fact: What a worker found out about the device.
        budget: The memory to fill in place of the device's own, in bytes.
        margin: The memory to leave free: a share (`5%`) or a size (`1GiB`).

    Raises:
        UsageError: The margin is neither a share nor a size, or it leaves no memory.
    """
    capacity = fact.capacity_bytes if budget is None else budget
    return FitDevice(
        name=fact.name,
        simulated=fact.simulated,
        capacity_bytes=capacity,
        usable_bytes=usable_bytes(capacity, margin),
        source="budget" if budget is not None else "catalog" if fact.simulated else "device",
    )


class _FitRun:
    """One run of `memprof fit`: it holds the matrix while it is being filled."""

    def __init__(
        self, request: FitRequest, workers: Workers, on_progress: OnProgress | None, on_report: OnReport | None
    ) -> None:
        self._request = request
        self._workers = workers
        self._reporter = ProgressReporter(on_progress)
        self._on_report = on_report
        self._unpredictable: str | None = None
        self._confirmed: dict[tuple[str, str], FitCell] = {}

    def run(self) -> FitReport:
        self._check()
        self._predict()
        if self._request.confirm:
            self._confirm()
        return self._report()

    def _check(self) -> None:
        """Check everything that can be checked without tracing or training."""
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
        self._confirmer = Confirmer(request, self._present(), launcher, self._reporter)
        kernels = {fact.name: fact.kernels for fact in found.devices}
        devices = [SearchDevice(device.name, device.usable_bytes, kernels[device.name]) for device in self._devices]
        self._prediction = MatrixPrediction([self._request_for(devices)], self._report_prediction, self._keep)

    def _present(self) -> int:
        """Return the value of the knob that the user trains with, or the default of the workload."""
        knob = self._request.vary.knob
        return self._request.batch_size if knob == BATCH else int(self._found.knobs[knob])

    def _request_for(self, devices: list[SearchDevice]) -> MatrixRequest:
        return MatrixRequest(
            workload=self._request.workload,
            optimizers=self._request.optimizers,
            devices=devices,
            recipe=self._request.recipe,
            batch_size=self._request.batch_size,
            vary=self._request.vary,
            present=self._present(),
        )

    def _report_prediction(self, label: str, finished: int, cells: int) -> None:
        self._reporter.report(label, "predict", stage="step", step=finished, steps=cells)

    def _predict(self) -> None:
        self._reporter.begin(self._found.name, "predict")
        try:
            self._prediction.run(self._workers)
        except MemprofError as error:
            if error.exit_code != ExitCode.USAGE or not self._all_can_be_trained:
                raise
            self._unpredictable = str(error)
            return
        self._reporter.report(f"{len(self._keys)} cells predicted", "predict", stage="done")

    @property
    def _keys(self) -> list[tuple[FitDevice, OptimizerSpec]]:
        return [(device, optimizer) for device in self._devices for optimizer in self._request.optimizers]

    @property
    def _all_can_be_trained(self) -> bool:
        return self._request.confirm and not any(device.simulated for device in self._devices)

    def _confirm(self) -> None:
        """Confirm the cells of this machine's devices by training, one after the other."""
        cells = [(device, optimizer) for device, optimizer in self._keys if not device.simulated]
        self._reporter.expect(2 * len(cells))  # an answer and its successor
        for device, optimizer in cells:
            predicted = self._predicted(device, optimizer)
            if not isinstance(predicted, str):
                self._confirmed[device.name, optimizer.text] = self._confirm_one(device, optimizer, predicted)
                self._keep()

    def _confirm_one(self, device: FitDevice, optimizer: OptimizerSpec, predicted: FitAnswer | None) -> FitCell:
        refused = self._prediction.matrices[0].refused.get(device.name, ())
        cell = FitCell(optimizer=optimizer.text, device=device.name)
        try:
            answer = self._confirmer.confirm(device, optimizer, predicted, refused)
        except MemprofError as error:
            if error.exit_code == ExitCode.USAGE:
                raise
            return cell.model_copy(update={"reason": str(error)})
        reason = None if answer is not None else f"no two values could be trained; {self._unpredictable}"
        return cell.model_copy(update={"answer": answer, "reason": reason})

    def _predicted(self, device: FitDevice, optimizer: OptimizerSpec) -> FitAnswer | str | None:
        return self._prediction.matrices[0].found.get((device.name, optimizer.text))

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
            evaluations=Evaluations(
                predicted=self._prediction.matrices[0].evaluations, trained=self._confirmer.trained
            ),
            notes=self._notes(),
        )

    def _cell(self, device: FitDevice, optimizer: OptimizerSpec) -> FitCell:
        """Return a cell with what was found for it so far."""
        cell = FitCell(optimizer=optimizer.text, device=device.name)
        if (device.name, optimizer.text) in self._confirmed:
            return self._confirmed[device.name, optimizer.text]
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
