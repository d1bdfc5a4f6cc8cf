"""The work behind `memprof fit`: predict the whole matrix, then prove by training what can be trained here."""

from __future__ import annotations

from memprof.errors import ExitCode, MemprofError, UsageError
from memprof.fitting.document import Evaluations, FitCell, FitDevice, FitReport
from memprof.fitting.margin import usable_bytes
from memprof.fitting.prover import Prover
from memprof.fitting.request import FitRequest
from memprof.fitting.teller import Teller
from memprof.fitting.vary import BATCH, check_knob
from memprof.fitting.workers import Workers
from memprof.plan import (
    DeviceFact,
    DeviceFindings,
    DeviceInquiry,
    Findings,
    FitForecast,
    FitMatrix,
    Inquiry,
    Step,
)
from memprof.progress import OnProgress
from memprof.results import FitAnswer
from memprof.simulation.accuracy import standing
from memprof.training.launcher import Launcher


def find_fits(
    request: FitRequest, on_progress: OnProgress | None = None, launcher: Launcher | None = None
) -> FitReport:
    """Return the largest value of a knob for each optimizer on each device.

    Args:
        request: what is to be found.
        on_progress: told about every evaluation.
        launcher: a fork server that runs already; those that are needed are started if not given.

    Raises:
        UsageError: an argument, the workload or the recipe is at fault.
        MemprofError: something failed that has to do with no single optimizer.
    """
    with Workers(len(request.devices), launcher) as workers:
        return _Study(request, workers, on_progress).run()


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

    def __init__(self, request: FitRequest, workers: Workers, on_progress: OnProgress | None) -> None:
        self._request = request
        self._workers = workers
        self._teller = Teller(on_progress)
        self._unpredictable: str | None = None
        self._refused: dict[str, tuple[int, ...]] = {}

    def run(self) -> FitReport:
        self._inquire()
        matrix, evaluations = self._predict()
        if self._request.confirm:  # an answer and its successor
            self._teller.expect(2 * len(self._numbers) * sum(not device.simulated for device in self._devices))
        cells = [self._cell(device, number, matrix) for device in self._devices for number in self._numbers]
        return FitReport(
            environment=self._found.environment,
            workload=self._found.workload_info(self._request.workload, self._request.batch_size),
            recipe=self._request.recipe,
            vary=self._request.vary,
            margin=self._request.margin,
            devices=self._devices,
            cells=cells,
            evaluations=Evaluations(predicted=evaluations, trained=self._prover.trained),
            notes=self._notes(),
        )

    def _notes(self) -> list[str]:
        notes = [standing()] if any(device.simulated for device in self._devices) else []
        return notes + ([f"Nothing was predicted: {self._unpredictable}"] if self._unpredictable else [])

    @property
    def _numbers(self) -> range:
        return range(len(self._request.optimizers))

    def _inquire(self) -> None:
        """Check everything that can be checked without a trace."""
        request, launcher = self._request, self._workers.launchers[0]
        answer = launcher.run(DeviceInquiry(devices=request.devices))
        assert isinstance(answer, DeviceFindings)
        self._facts = {fact.name: fact for fact in answer.devices}
        if len(self._facts) < len(answer.devices):
            raise UsageError("a device is given twice; keep one of each")
        self._devices = [device_of(fact, request.budget, request.margin) for fact in answer.devices]
        found = launcher.run(
            Inquiry(
                workload=request.workload,
                optimizers=request.optimizers,
                device=self._devices[0].name,
                command=request.command,
            )
        )
        assert isinstance(found, Findings)
        check_knob(request.vary, found.name, found.knobs)
        self._found = found
        self._prover = Prover(request, self._present(), launcher, self._teller)

    def _present(self) -> int:
        """Return the value of the knob that the user trains with, or the workload's default."""
        knob = self._request.vary.knob
        return self._request.batch_size if knob == BATCH else int(self._found.knobs[knob])

    def _predict(self) -> tuple[dict[tuple[str, int], FitAnswer | str], int]:
        """Return an answer, or the reason why there is none, by device and optimizer; and how many values it took."""
        parts = self._parts()
        jobs = [self._forecast(names) for names in parts]
        finished = [0] * len(parts)
        cells = len(self._devices) * len(self._numbers)

        def on_step(number: int, step: Step) -> None:
            finished[number] = step.step
            label = f"{', '.join(parts[number])}  {step.label}"
            self._teller.tell(label, "predict", stage="step", step=sum(finished), steps=cells)

        self._teller.begin(self._found.name, "predict")
        try:
            answers = self._workers.run(jobs, on_step)
        except MemprofError as error:
            if error.exit_code != ExitCode.USAGE or not self._all_can_be_trained:
                raise
            self._unpredictable = str(error)
            return {}, 0
        self._teller.tell(f"{cells} cells predicted", "predict", stage="done")
        matrix: dict[tuple[str, int], FitAnswer | str] = {}
        for names, answer in zip(parts, answers, strict=True):
            assert isinstance(answer, FitMatrix)
            keys = [(name, number) for name in names for number in self._numbers]
            for key, found in zip(keys, answer.answers, strict=True):
                matrix[key] = answer.failures[key[1]] if found is None else found
            self._refused.update(dict.fromkeys(names, tuple(answer.refused)))
        return matrix, sum(answer.evaluations for answer in answers if isinstance(answer, FitMatrix))

    @property
    def _all_can_be_trained(self) -> bool:
        return self._request.confirm and not any(device.simulated for device in self._devices)

    def _parts(self) -> list[list[str]]:
        """Return the devices by their kernels, the largest parts halved while workers would have nothing to do."""
        by_kernels: dict[str, list[str]] = {}
        for device in sorted(self._devices, key=lambda device: device.usable_bytes):
            by_kernels.setdefault(self._facts[device.name].kernels, []).append(device.name)
        parts = sorted(by_kernels.values(), key=len, reverse=True)
        while len(parts) < len(self._workers.launchers) and len(parts[0]) > 1:
            half = len(parts[0]) // 2
            parts = sorted([parts[0][:half], parts[0][half:], *parts[1:]], key=len, reverse=True)
        return parts

    def _forecast(self, names: list[str]) -> FitForecast:
        usable = {device.name: device.usable_bytes for device in self._devices}
        return FitForecast(
            workload=self._request.workload,
            optimizers=self._request.optimizers,
            recipe=self._request.recipe,
            batch_size=self._request.batch_size,
            vary=self._request.vary,
            present=self._present(),
            device=names[0],
            capacities=[usable[name] for name in names],
        )

    def _cell(self, device: FitDevice, number: int, matrix: dict[tuple[str, int], FitAnswer | str]) -> FitCell:
        spec, predicted = self._request.optimizers[number], matrix.get((device.name, number))
        if isinstance(predicted, str):
            return FitCell(optimizer=spec.text, device=device.name, reason=predicted)
        answer = predicted
        if self._request.confirm and not device.simulated:
            answer = self._prover.prove(device, spec, predicted, self._refused.get(device.name, ()))
        reason = None if answer is not None else f"no two values could be trained; {self._unpredictable}"
        return FitCell(optimizer=spec.text, device=device.name, answer=answer, reason=reason)
