"""Builds a comparison trial by trial: measured or predicted runs, then the largest batch and model, and validation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from memprof.documents.comparison import Capacity, Comparison, Run
from memprof.documents.confidence import Validation
from memprof.documents.jobs import Findings, Forecast, Inquiry, Outcome, Outcomes, Purpose, Step, Trial
from memprof.documents.optimizer_spec import OptimizerSpec, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import MemprofError, UsageError
from memprof.search.compare_columns import FitColumns
from memprof.search.matrix import MatrixPrediction
from memprof.workers.death import WorkerDiedError, outcome_of
from memprof.workers.pool import Workers
from memprof.workers.progress import OnComparison, OnProgress, Progress

# Reserved memory no longer grows after the third step: by then every phase has run once with the optimizer state.
_SETTLED_STEPS = 3
# The number of fork servers that predict the largest batch and model for a simulated device.
_PREDICTING_SERVERS = 8


class ComparisonBuilder:
    """Builds a comparison trial by trial; `comparison` always holds what is finished.

    Call `start` first, then `measure`, and after that `validate` and `fit` as wanted.

    Args:
        workers: The fork servers. Trials run on the first one.
        workload: What is trained.
        optimizers: The optimizer specs, one run each.
        batch_size: The number of samples in each micro-batch.
        recipe: How it is trained.
        on_progress: A function that is called with every progress event.
        on_comparison: A function that is called with the comparison after every change.
    """

    comparison: Comparison

    def __init__(
        self,
        workers: Workers,
        workload: WorkloadSpec,
        optimizers: list[OptimizerSpec],
        batch_size: int,
        recipe: Recipe,
        on_progress: OnProgress | None,
        on_comparison: OnComparison | None,
    ) -> None:
        self._workers = workers
        self._launcher = workers.launchers[0]
        self._workload = workload
        self._optimizers = optimizers
        self._batch_size = batch_size
        self._recipe = recipe
        self._on_progress = on_progress
        self._on_comparison = on_comparison
        self._measured: list[Outcome] = []
        self._forecasts: dict[str, list[Outcome]] = {}
        self._started = 0
        self._trials = len(optimizers)

    def start(
        self, device: str, budget: int | None, reference: str | None, command: str | None, trains: str | None
    ) -> None:
        """Check everything that can be checked without training, and begin a comparison without runs.

        Args:
            device: The name of the device.
            budget: The capacity in bytes that replaces the device's memory, or None.
            reference: The optimizer spec that the others are compared with.
            command: The command line to record.
            trains: The name of an option in use that needs a real device, or None.

        Raises:
            UsageError: The workload or an optimizer is wrong, or `trains` is set and the device is simulated.
        """
        inquiry = Inquiry(
            workload=self._workload,
            optimizers=self._optimizers,
            devices=[device],
            world_size=self._recipe.world_size,
            command=command,
        )
        found = self._launcher.run(inquiry)
        assert isinstance(found, Findings)
        if found.device.simulated and trains:
            raise UsageError(f"{trains} trains on the device, and {found.device.name} is simulated; leave {trains} out")
        self._found = found
        texts = [spec.text for spec in self._optimizers]
        default = "adam" if "adam" in texts else None
        self.comparison = Comparison(
            environment=found.environment,
            workload=found.workload_info(self._workload, self._batch_size),
            recipe=self._recipe,
            capacity=Capacity(
                bytes=budget or found.device.memory_bytes, source="device" if budget is None else "budget"
            ),
            reference=parse_optimizer(reference).text if reference else default,
            runs=[],
        )

    def measure(self, trace_folder: str | None = None) -> None:
        """Run one trial for each optimizer, and write the traces to a folder if one is given."""
        for spec in self._optimizers:
            trial = self._trial(spec).model_copy(update={"trace_folder": trace_folder})
            outcome = self._run(trial, "measure", spec.text)
            self._measured.append(outcome)
            self._keep([*self.comparison.runs, outcome.run])

    def only_predict(self) -> None:
        """Treat the device as a simulated one even if this machine has it."""
        here = self._found.device.model_copy(update={"simulated": True})
        self._found = self._found.model_copy(update={"devices": [here]})

    def validate(self) -> None:
        """Predict every measured run and record how far the prediction is off.

        If one prediction fails, the others would fail for the same reason, so that reason is recorded for all.
        """
        from memprof.prediction.validate import validate

        unpredictable: Validation | None = None
        steps = min(self._recipe.warmup + self._recipe.steps, _SETTLED_STEPS)
        for index, spec in enumerate(self._optimizers):
            run = self.comparison.runs[index]
            try:
                found = unpredictable or validate(run, self._forecast(self._trial(spec), steps).run)
            except MemprofError as error:
                found = unpredictable = Validation(reason=str(error))
            run = run.model_copy(update={"validation": found})
            self._measured[index] = self._measured[index].model_copy(update={"run": run})
            self._keep_at({index: run})

    def expect_fits(self, confirm: bool) -> None:
        """Add the trials of the fit search to the expected number; a confirmation may take more."""
        self._trials += 1 if self._found.device.simulated else self._columns.trials(confirm) * len(self._optimizers)

    def fit(self, confirm: bool) -> None:
        """Find the largest batch and model of each optimizer whose run did not fail."""
        if self._found.device.simulated:
            self._predict_fits()
            return
        for index, outcome in enumerate(self._measured):
            if outcome.run.status != "failed":
                fitted = self._columns.train(self._optimizers[index], outcome, self._run, confirm)
                self._keep_at({index: outcome.run.model_copy(update={"fit": fitted})})

    @property
    def _columns(self) -> FitColumns:
        capacity = self.comparison.capacity.bytes
        return FitColumns(self._workload, self._found, self._batch_size, self._recipe, capacity)

    def _predict_fits(self) -> None:
        """Search by prediction, on all cores.

        The optimizers are sorted by the memory that they take, because neighbours try similar batch sizes and share
        the traces of these.
        """
        columns = self._columns
        able = [number for number, outcome in enumerate(self._measured) if outcome.run.status != "failed"]
        if not able:
            return
        able.sort(key=lambda number: _reserved_bytes(self._measured[number].run))
        self._started += 1
        label = f"largest {' and '.join(knob for knob, _ in columns.knobs.values())}"
        self._tell(label, "predict", stage="start")

        def on_step(what: str, finished: int, cells: int) -> None:
            self._tell(what, "predict", stage="step", step=finished, steps=cells)

        def keep() -> None:
            runs = {number: self._measured[number].run for number in able}
            self._keep_at({number: columns.filled(run, prediction.matrices) for number, run in runs.items()})

        prediction = MatrixPrediction(columns.requests([self._optimizers[n] for n in able]), on_step, keep)
        self._workers.grow(_PREDICTING_SERVERS)
        prediction.run(self._workers)
        keep()
        self._tell(label, "predict", stage="done")

    def _trial(self, spec: OptimizerSpec) -> Trial:
        return Trial(
            workload=self._workload,
            optimizer=spec,
            device=self._found.device.name,
            batch_size=self._batch_size,
            recipe=self._recipe,
        )

    def _keep_at(self, changed: Mapping[int, Run]) -> None:
        self._keep([changed.get(index, run) for index, run in enumerate(self.comparison.runs)])

    def _keep(self, runs: list[Run]) -> None:
        self.comparison = self.comparison.model_copy(update={"runs": runs})
        if self._on_comparison is not None:
            self._on_comparison(self.comparison)

    def _run(self, trial: Trial, purpose: Purpose, label: str) -> Outcome:
        self._started += 1
        tell = partial(self._tell, label, purpose)

        def on_step(step: Step) -> None:
            tell(stage=step.stage, step=step.step, steps=step.steps, peak_bytes=step.peak_bytes)

        tell(stage="start")
        try:
            outcome = self._forecast(trial) if self._found.device.simulated else self._launcher.run(trial, on_step)
            assert isinstance(outcome, Outcome)
        except WorkerDiedError as death:
            outcome = outcome_of(death, trial.optimizer, trial.device)
        tell(stage="done", run=outcome.run)
        return outcome

    def _tell(self, label: str, purpose: Purpose, **details: Any) -> None:
        self._trials = max(self._trials, self._started)
        if self._on_progress is not None:
            told = Progress(trial=self._started, trials=self._trials, label=label, purpose=purpose, **details)
            self._on_progress(told)

    def _forecast(self, trial: Trial, steps: int | None = None) -> Outcome:
        """Return the prediction for a trial. One job predicts all optimizers, and its answer is kept for the others."""
        forecast = Forecast(
            workload=trial.workload,
            optimizers=self._optimizers,
            device=trial.device,
            batch_size=trial.batch_size,
            recipe=self._recipe,
            capacity_bytes=self.comparison.capacity.bytes if self._found.device.simulated else None,
            timeline=trial.purpose == "measure",
            trace_folder=trial.trace_folder,
            steps=steps,
        )
        key = forecast.model_dump_json()
        if key not in self._forecasts:
            answer = self._launcher.run(forecast)
            assert isinstance(answer, Outcomes)
            self._forecasts[key] = answer.outcomes
        return self._forecasts[key][self._optimizers.index(trial.optimizer)]


def _reserved_bytes(run: Run) -> int:
    """Return the bytes that a run takes from its device; a run that ran out of memory sorts after all others."""
    return 1 << 62 if run.peak is None else run.peak.reserved_bytes or run.peak.allocated_bytes
