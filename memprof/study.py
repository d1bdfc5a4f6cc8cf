"""A comparison as it grows, trial by trial: measured or predicted, with fits and validation."""

from __future__ import annotations

from functools import partial
from typing import Any

from memprof.errors import MemprofError, UsageError
from memprof.fitting.room import Room
from memprof.fitting.trained import TrainedSearch
from memprof.fitting.vary import Vary
from memprof.optimizers.spec import OptimizerSpec, parse_optimizer
from memprof.plan import Findings, FitForecast, FitMatrix, Forecast, Inquiry, Outcome, Outcomes, Step, Trial
from memprof.progress import OnComparison, OnProgress, Progress, Purpose
from memprof.results import Capacity, Comparison, Fit, FitAnswer, Run
from memprof.training.launcher import Launcher, WorkerDiedError, outcome_of
from memprof.training.recipe import Recipe
from memprof.trust import Validation
from memprof.workloads.spec import WorkloadSpec

# From the third step on every phase finds the memory reserved that all phases have needed.
_SETTLED = 3


class Study:
    """A comparison as it grows, trial by trial."""

    comparison: Comparison

    def __init__(
        self,
        launcher: Launcher,
        workload: WorkloadSpec,
        optimizers: list[OptimizerSpec],
        batch_size: int,
        recipe: Recipe,
        on_progress: OnProgress | None,
        on_comparison: OnComparison | None,
    ) -> None:
        self._launcher = launcher
        self._workload = workload
        self._optimizers = optimizers
        self._batch_size = batch_size
        self._recipe = recipe
        self._on_progress = on_progress
        self._on_comparison = on_comparison
        self._measured: list[Outcome] = []
        self._forecasts: dict[str, list[Outcome]] = {}
        self._forecast_fits: dict[str, list[FitAnswer | None]] = {}
        self._started = 0
        self._trials = len(optimizers)

    def inquire(
        self, device: str, budget: int | None, reference: str | None, command: str | None, trains: str | None
    ) -> None:
        """Check everything that can be checked without training; `trains` is an option that needs a real device."""
        inquiry = Inquiry(workload=self._workload, optimizers=self._optimizers, device=device, command=command)
        found = self._launcher.run(inquiry)
        assert isinstance(found, Findings)
        if found.simulated and trains:
            raise UsageError(f"{trains} trains on the device, and {found.device} is simulated; leave {trains} out")
        self._found = found
        texts = [spec.text for spec in self._optimizers]
        default = "adam" if "adam" in texts else None
        self.comparison = Comparison(
            environment=found.environment,
            workload=found.workload_info(self._workload, self._batch_size),
            recipe=self._recipe,
            capacity=Capacity(
                bytes=budget or found.device_memory_bytes, source="device" if budget is None else "budget"
            ),
            reference=parse_optimizer(reference).text if reference else default,
            runs=[],
        )

    def measure(self, trace_folder: str | None = None) -> None:
        """Fill one row per optimizer."""
        for spec in self._optimizers:
            trial = self._trial(spec).model_copy(update={"trace_folder": trace_folder})
            outcome = self._run(trial, "measure", spec.text)
            self._measured.append(outcome)
            self._keep([*self.comparison.runs, outcome.run])

    def only_predict(self) -> None:
        """Treat a device that is here as one that is not."""
        self._found = self._found.model_copy(update={"simulated": True})

    def validate(self) -> None:
        """Set a prediction beside every measured run; the first that cannot be had speaks for all."""
        from memprof.analysis.validation import validate

        unpredictable: Validation | None = None
        steps = min(self._recipe.warmup + self._recipe.steps, _SETTLED)
        for index, spec in enumerate(self._optimizers):
            run = self.comparison.runs[index]
            try:
                found = unpredictable or validate(run, self._forecast(self._trial(spec), steps).run)
            except MemprofError as error:
                found = unpredictable = Validation(reason=str(error))
            runs = [*self.comparison.runs]
            runs[index] = run.model_copy(update={"validation": found})
            self._measured[index] = self._measured[index].model_copy(update={"run": runs[index]})
            self._keep(runs)

    def expect_fits(self, confirm: bool) -> None:
        """Count the trials of the fits in, so that progress knows its end; confirming may take more."""
        each = 1 if self._found.simulated else (3 if confirm else 1) * len(self._optimizers)
        self._trials += each * len(self._fit_knobs())

    def fit(self, confirm: bool) -> None:
        """Find the largest batch and model of each optimizer that could train."""
        for index, outcome in enumerate(self._measured):
            if outcome.run.status == "failed":
                continue
            fitted = self._fit_one(self._trial(self._optimizers[index]), outcome, confirm)
            runs = [*self.comparison.runs]
            runs[index] = outcome.run.model_copy(update={"fit": fitted})
            self._keep(runs)

    def _fit_knobs(self) -> dict[str, tuple[str, int]]:
        """Return the columns of the fit: the knob that each varies, and its value in the measured trials."""
        knobs = {"batch_size": ("batch_size", self._batch_size)}
        scale = self._found.scale
        if scale is not None and isinstance(self._found.knobs.get(scale), int):
            knobs["model"] = (scale, self._found.knobs[scale])
        return knobs

    def _fit_one(self, trial: Trial, measured: Outcome, confirm: bool) -> Fit:
        answers: dict[str, FitAnswer | None] = {}
        for name, (knob, value) in self._fit_knobs().items():
            if self._found.simulated:
                answers[name] = self._forecast_fit(knob, value)[self._optimizers.index(trial.optimizer)]
                continue
            room = Room(trial, Vary(knob=knob), self.comparison.capacity.bytes)
            search = TrainedSearch(room, self._run, {value: measured})
            answers[name] = search.prove() if confirm else search.extrapolate()
        return Fit(**answers)

    def _forecast_fit(self, knob: str, value: int) -> list[FitAnswer | None]:
        """Return the largest value for each optimizer; all are searched for when the first of them asks."""
        if knob not in self._forecast_fits:
            job = FitForecast(
                workload=self._workload,
                optimizers=self._optimizers,
                recipe=self._recipe,
                batch_size=self._batch_size,
                vary=Vary(knob=knob),
                present=value,
                device=self._found.device,
                capacities=[self.comparison.capacity.bytes],
            )
            self._started += 1
            tell = partial(self._tell, f"largest {knob}", "predict")
            tell(stage="start")
            answer = self._launcher.run(job, lambda step: tell(stage="step", step=step.step, steps=step.steps))
            assert isinstance(answer, FitMatrix)
            tell(stage="done")
            self._forecast_fits[knob] = answer.answers
        return self._forecast_fits[knob]

    def _trial(self, spec: OptimizerSpec) -> Trial:
        return Trial(
            workload=self._workload,
            optimizer=spec,
            device=self._found.device,
            batch_size=self._batch_size,
            recipe=self._recipe,
        )

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
            outcome = self._forecast(trial) if self._found.simulated else self._launcher.run(trial, on_step)
            assert isinstance(outcome, Outcome)
        except WorkerDiedError as death:
            outcome = outcome_of(death, trial)
        tell(stage="done", run=outcome.run)
        return outcome

    def _tell(self, label: str, purpose: Purpose, **details: Any) -> None:
        self._trials = max(self._trials, self._started)
        if self._on_progress is not None:
            told = Progress(trial=self._started, trials=self._trials, label=label, purpose=purpose, **details)
            self._on_progress(told)

    def _forecast(self, trial: Trial, steps: int | None = None) -> Outcome:
        """Return what is predicted for a trial; all optimizers are predicted when the first of them asks."""
        forecast = Forecast(
            workload=trial.workload,
            optimizers=self._optimizers,
            device=trial.device,
            batch_size=trial.batch_size,
            recipe=self._recipe,
            capacity_bytes=self.comparison.capacity.bytes if self._found.simulated else None,
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
