"""A comparison of optimizers on a training script, trial by trial: measured or predicted, with validation."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from memprof.documents.comparison import Capacity, Comparison, Fit, FitAnswer, Run
from memprof.documents.confidence import Validation
from memprof.documents.jobs import Outcome, Purpose, ScriptFindings, ScriptForecast, ScriptInquiry, ScriptTrial, Step
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.script import ScriptInfo, ScriptSpec, Substitution
from memprof.documents.vary import Vary
from memprof.documents.wording import phase_words
from memprof.errors import MemprofError, UsageError
from memprof.search.of_scripts import ScriptSearch
from memprof.workers.death import WorkerDiedError, outcome_of
from memprof.workers.launcher import Launcher
from memprof.workers.progress import OnComparison, OnProgress, Progress


class ScriptFailedError(MemprofError):
    """The script itself failed while it ran, or something that was found in it stopped it."""


@dataclass(frozen=True)
class _Searched:
    """The end of the search with one optimizer, and the largest value that was found; None if it cannot be used."""

    one: Substitution
    search: ScriptSearch
    answer: FitAnswer | None


class ScriptStudy:
    """A comparison as it grows.

    Args:
        launcher: runs the trials, each in a process of its own.
        trial: what is the same for all of them; its device is what the user wrote.
        substitutions: one trial for each.
        on_progress: told of every step.
        on_comparison: given the comparison so far after every trial.
        vary: the placeholder in the script's arguments whose largest value is to be found; None if there is none.
    """

    comparison: Comparison

    def __init__(
        self,
        launcher: Launcher,
        trial: ScriptTrial,
        substitutions: list[Substitution],
        on_progress: OnProgress | None,
        on_comparison: OnComparison | None,
        vary: Vary | None = None,
    ) -> None:
        self._vary = vary
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
        self._capacity_bytes = budget or found.device.capacity_bytes
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
        if self._vary is not None:
            self._find_largest(self._vary, validate)
            return
        for one in self._substitutions:
            self._keep([*self.comparison.runs, self._run_one(self._trial, one, validate)])

    def _run_one(self, trial: ScriptTrial, one: Substitution, validate: bool) -> Run:
        trial = trial.model_copy(update={"substitution": one})
        if not validate:
            return self._answer(one.spec.text, _as_forecast(trial) if self._simulated else trial).run
        forecast = self._forecast(trial)
        if isinstance(forecast, Run) and forecast.steps is not None:  # both are to run as many
            trial = trial.model_copy(update={"steps": len(forecast.steps.allocated_bytes)})
        run = self._answer(one.spec.text, trial).run
        if isinstance(forecast, Run) and run.status == "ok" and run.rank not in (None, forecast.rank):
            forecast = self._forecast(trial.model_copy(update={"rank": run.rank}))  # of that with the highest peak
        return run.model_copy(update={"validation": _validation(run, forecast)})

    def _forecast(self, trial: ScriptTrial) -> Run | str:
        """Predict what is measured as well; the answer is a sentence where that is not possible."""
        try:
            return self._answer(f"{trial.substitution.spec.text} (predicting)", _as_forecast(trial)).run
        except MemprofError as error:
            return str(error)

    def _keep(self, runs: list[Run], **knobs: int) -> None:
        script = self.comparison.script
        assert script is not None
        script = script.model_copy(update={"knobs": knobs})
        self.comparison = self.comparison.model_copy(update={"runs": runs, "script": script})
        if self._on_comparison is not None:
            self._on_comparison(self.comparison)

    # The largest value of a placeholder

    def _find_largest(self, vary: Vary, validate: bool) -> None:
        """Find each optimizer's largest value, and compare them at the largest that fits with all that fit at all."""
        searched: list[_Searched] = []
        for one in self._substitutions:
            searched.append(self._searched(vary, one, searched[-1].search if searched else None))
            self._keep([self._at_its_own(vary, each) for each in searched])
        fitting = [each.answer.value for each in searched if each.answer is not None and each.answer.value]
        if not fitting:
            return
        value = min(fitting)
        self._keep([self._at(vary, value, each, validate) for each in searched], **{vary.knob: value})

    def _searched(self, vary: Vary, one: Substitution, like: ScriptSearch | None) -> _Searched:
        """Search by predicting; on a device that is here also by running, from the predicted answer on."""
        trial = self._trial.model_copy(update={"substitution": one})

        def at(value: int) -> ScriptTrial:
            return trial.model_copy(update={"script": trial.script.with_value(vary.knob, value)})

        def predict(value: int) -> Outcome:
            return self._answer(f"{one.spec.text}  {vary.knob}={value}", _as_forecast(at(value)), "fit")

        def measure(value: int) -> Outcome:
            capped = at(value).model_copy(update={"limit_bytes": self._capacity_bytes})
            return self._answer(f"{one.spec.text}  {vary.knob}={value}", capped, "confirm")

        predicted = ScriptSearch(vary, self._capacity_bytes, predict, trial.timeout_s, like)
        if self._simulated:
            return _Searched(one, predicted, predicted.find())
        with suppress(MemprofError):  # what cannot be predicted may still run
            predicted.find()
        measured = ScriptSearch(vary, self._capacity_bytes, measure, trial.timeout_s, predicted)
        return _Searched(one, measured, measured.find())

    def _at_its_own(self, vary: Vary, found: _Searched) -> Run:
        """Return the run with the largest value of this optimizer; the first that does not fit where none does."""
        if found.answer is None:
            assert found.search.failure is not None
            return found.search.failure
        value = found.answer.value or found.answer.next_value
        assert value is not None
        run = found.search.outcomes[value].run
        about = [f"The figures are those of {vary.knob}={value}."] if run.status == "ok" else []
        notes = [*run.notes, *about, *found.answer.notes]
        return run.model_copy(update={"fit": Fit(batch_size=found.answer), "notes": notes})

    def _at(self, vary: Vary, value: int, found: _Searched, validate: bool) -> Run:
        """Return the run with a value that fits, which may have been tried."""
        if found.answer is None or not found.answer.value:
            return self._at_its_own(vary, found)
        tried = found.search.outcomes.get(value)
        if tried is None or validate or self._trial.trace_folder is not None:
            script = self._trial.script.with_value(vary.knob, value)
            run = self._run_one(self._trial.model_copy(update={"script": script}), found.one, validate)
        else:
            run = tried.run
        return run.model_copy(update={"fit": Fit(batch_size=found.answer), "notes": [*run.notes, *found.answer.notes]})

    def _answer(self, label: str, job: ScriptTrial, purpose: Purpose = "measure") -> Outcome:
        self._started += 1
        spec = job.substitution.spec
        tell = partial(self._tell, label, purpose)
        last: Step | None = None

        def on_step(step: Step) -> None:
            nonlocal last
            last = step
            tell(stage=step.stage, step=step.step, steps=step.steps, peak_bytes=step.peak_bytes, phase=step.phase)

        tell(stage="start")
        try:
            answer = self._launcher.run(job, on_step)
            assert isinstance(answer, Outcome)
        except WorkerDiedError as death:
            answer = outcome_of(death, spec, job.device)
            reason = f"{answer.run.reason}; {_last_heard(job.script, last)}"
            answer = Outcome(run=answer.run.model_copy(update={"reason": reason}))
            if job.job == "script" and job.limit_bytes is not None:  # a library may crash when it is refused memory
                answer = Outcome(run=answer.run.model_copy(update={"status": "oom"}))
        except MemprofError as error:
            raise ScriptFailedError(f"{error}{_about_braces(job.script)}", error.exit_code) from error
        tell(stage="done", run=answer.run)
        return answer

    def _tell(self, label: str, purpose: Purpose, **details: Any) -> None:
        if self._on_progress is not None:
            trials = max(self._started, len(self._substitutions))
            self._on_progress(Progress(trial=self._started, trials=trials, label=label, purpose=purpose, **details))


def _last_heard(script: ScriptSpec, step: Step | None) -> str:
    """Say where a script was that ended its process: by `os._exit`, a signal, or a crash in compiled code."""
    if step is None or not step.phase:
        return f"{script.name} had not come to a training step"
    return f"{script.name} was last heard of in step {step.step}, {phase_words(step.phase)}"


def _about_braces(script: ScriptSpec) -> str:
    """Say what an argument in braces is, if it may be that which the script failed about."""
    if not script.placeholders:
        return ""
    name = script.placeholders[0]
    return f"; its arguments have {{{name}}}, which only --vary {name}=LO:HI gives a value"


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
