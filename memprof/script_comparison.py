"""A comparison of optimizers on a training script, trial by trial: measured or predicted, with validation."""

from __future__ import annotations

from functools import partial
from typing import Any

from memprof.documents.comparison import Capacity, Comparison, Run
from memprof.documents.confidence import Validation
from memprof.documents.jobs import Outcome, ScriptFindings, ScriptForecast, ScriptInquiry, ScriptTrial, Step
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.script import ScriptInfo, ScriptSpec, Substitution
from memprof.errors import MemprofError, UsageError
from memprof.workers.death import WorkerDiedError, outcome_of
from memprof.workers.launcher import Launcher
from memprof.workers.progress import OnComparison, OnProgress, Progress


class ScriptStudy:
    """A comparison as it grows.

    Args:
        launcher: runs the trials, each in a process of its own.
        trial: what is the same for all of them; its device is what the user wrote.
        substitutions: one trial for each.
        on_progress: told of every step.
        on_comparison: given the comparison so far after every trial.
    """

    comparison: Comparison

    def __init__(
        self,
        launcher: Launcher,
        trial: ScriptTrial,
        substitutions: list[Substitution],
        on_progress: OnProgress | None,
        on_comparison: OnComparison | None,
    ) -> None:
        self._launcher = launcher
        self._trial = trial
        self._substitutions = substitutions
        self._on_progress = on_progress
        self._on_comparison = on_comparison
        self._started = 0

    def inquire(self, budget: int | None, reference: str | None, command: str | None, validate: bool) -> None:
        """Check what can be checked without running the script."""
        inquiry = ScriptInquiry(
            script=self._trial.script,
            substitutions=self._substitutions,
            device=self._trial.device,
            world_size=self._trial.world_size,
            command=command,
        )
        found = self._launcher.run(inquiry)
        assert isinstance(found, ScriptFindings)
        if found.device.simulated and validate:
            raise UsageError(
                f"--validate runs on the device, and {found.device.name} is simulated; leave --validate out"
            )
        self._simulated = found.device.simulated
        limit = budget if found.device.simulated else None
        self._trial = self._trial.model_copy(update={"device": found.device.name, "limit_bytes": limit})
        script, trial = self._trial.script, self._trial
        self.comparison = Comparison(
            environment=found.environment,
            script=ScriptInfo(
                program=script.name,
                arguments=script.arguments,
                steps=trial.steps,
                world_size=trial.world_size,
                rank=trial.rank,
            ),
            capacity=Capacity(
                bytes=budget or found.device.memory_bytes, source="device" if budget is None else "budget"
            ),
            reference=reference,
            runs=[],
        )

    def run(self, validate: bool) -> None:
        """Fill one row per optimizer."""
        for one in self._substitutions:
            self._run_one(one, validate)

    def _run_one(self, one: Substitution, validate: bool) -> None:
        forecast: Run | str | None = None
        trial = self._trial.model_copy(update={"substitution": one})
        if validate:
            try:
                forecast = self._answer(one, "predicting", _as_forecast(trial))
            except MemprofError as error:
                forecast = str(error)
            if isinstance(forecast, Run) and forecast.steps is not None:  # both are to run as many
                trial = trial.model_copy(update={"steps": len(forecast.steps.allocated_bytes)})
        run = self._answer(one, "", _as_forecast(trial) if self._simulated else trial)
        if isinstance(forecast, Run) and run.rank not in (None, forecast.rank):  # the rank with the highest peak
            forecast = self._answer(one, "predicting", _as_forecast(trial.model_copy(update={"rank": run.rank})))
        if forecast is not None:
            run = run.model_copy(update={"validation": _validation(run, forecast)})
        self.comparison = self.comparison.model_copy(update={"runs": [*self.comparison.runs, run]})
        if self._on_comparison is not None:
            self._on_comparison(self.comparison)

    def _answer(self, one: Substitution, doing: str, job: ScriptTrial) -> Run:
        self._started += 1
        tell = partial(self._tell, f"{one.spec.text}{f' ({doing})' if doing else ''}")

        def on_step(step: Step) -> None:
            tell(stage=step.stage, step=step.step, steps=step.steps, peak_bytes=step.peak_bytes)

        tell(stage="start")
        try:
            answer = self._launcher.run(job, on_step)
            assert isinstance(answer, Outcome)
        except WorkerDiedError as death:
            answer = outcome_of(death, one.spec, job.device)
        tell(stage="done", run=answer.run)
        return answer.run

    def _tell(self, label: str, **details: Any) -> None:
        if self._on_progress is not None:
            trials = max(self._started, len(self._substitutions))
            self._on_progress(Progress(trial=self._started, trials=trials, label=label, purpose="measure", **details))


def _as_forecast(trial: ScriptTrial) -> ScriptForecast:
    return ScriptForecast(**trial.model_dump(exclude={"job"}))


def _validation(measured: Run, predicted: Run | str) -> Validation:
    from memprof.prediction.validate import validate

    return Validation(reason=predicted) if isinstance(predicted, str) else validate(measured, predicted)


def check_substitutions(substitutions: list[Substitution], reference: str | None) -> str | None:
    """Refuse optimizers that contradict one another, and return the reference as the document has it.

    Raises:
        UsageError: the sentence says which.
    """
    texts = [one.spec.text for one in substitutions]
    if not texts:
        raise UsageError("there is no optimizer to run the script with; -o as-is leaves the script's own")
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UsageError(f"the optimizer {twice!r} is given twice; keep one")
    if reference is None:
        return "as-is" if "as-is" in texts else None
    wanted = parse_optimizer(reference).text if "@" not in reference else reference
    if wanted not in texts:
        raise UsageError(f"the reference {reference!r} is not among the optimizers compared: {', '.join(texts)}")
    return wanted


def spec_of_script(script: str | None, module: str | None, arguments: tuple[str, ...]) -> ScriptSpec:
    """Return what is to be run.

    Raises:
        UsageError: neither a script nor a module is named, or both.
    """
    if (script is None) == (module is None):
        raise UsageError("name the script to run: memprof run train.py, or a module: memprof run -m package.train")
    return ScriptSpec(path=script, module=module, arguments=arguments)
