"""Compares optimizers on a training script, trial by trial. Trials are measured or predicted, or both."""

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
    """The script itself failed while it ran, or memprof stopped it because of an error in it."""


@dataclass(frozen=True)
class _Searched:
    """The finished search with one optimizer, and its largest value, which is None if the optimizer cannot be used."""

    one: Substitution
    search: ScriptSearch
    answer: FitAnswer | None


class ScriptStudy:
    """A comparison that grows row by row.

    Args:
        launcher: The fork server that runs each trial in a process of its own.
        trial: The settings that all trials share. Its device is the text that the user gave.
        substitutions: The substitutions, one for each trial.
        on_progress: Called with every step.
        on_comparison: Called with the comparison so far after every trial.
        vary: The placeholder in the script's arguments whose largest value is searched for; None for no search.
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
        """Check everything that can be checked without running the script.

        Args:
            budget: The memory that the script may take, in bytes; None for the device's memory.
            reference: The optimizer that the others are compared with.
            command: The command line to record in the comparison.
            validate: Whether each measurement is also predicted.
        """
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
        """Run the trials and fill one row per optimizer.

        Args:
            validate: Whether each measurement is also predicted.
        """
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
        if isinstance(forecast, Run) and forecast.steps is not None:  # both run the same number of steps
            trial = trial.model_copy(update={"steps": len(forecast.steps.allocated_bytes)})
        run = self._answer(one.spec.text, trial).run
        if isinstance(forecast, Run) and run.status == "ok" and run.rank not in (None, forecast.rank):
            forecast = self._forecast(trial.model_copy(update={"rank": run.rank}))  # the rank of the highest peak
        return run.model_copy(update={"validation": _validation(run, forecast)})

    def _forecast(self, trial: ScriptTrial) -> Run | str:
        """Predict the measured trial as well. The result is a sentence with the reason if that is not possible."""
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

    # The following methods search for the largest value of a placeholder.

    def _find_largest(self, vary: Vary, validate: bool) -> None:
        """Find each optimizer's largest value, then compare them at the smallest of these values."""
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
        """Search with predictions and, on a device of this machine, with runs that begin at the predicted value."""
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
        with suppress(MemprofError):  # a script that cannot be predicted may still run
            predicted.find()
        measured = ScriptSearch(vary, self._capacity_bytes, measure, trial.timeout_s, predicted)
        return _Searched(one, measured, measured.find())

    def _at_its_own(self, vary: Vary, found: _Searched) -> Run:
        """Return the run with this optimizer's largest value, or the first one that does not fit if no value fits."""
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
        """Return the run with a value that fits. The search may have tried it already."""
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
    """Return a hint about an argument in braces, if the script may have failed because of it."""
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
    """Refuse optimizers that contradict one another, and return the reference in the form of the document.

    Raises:
        UsageError: The optimizers or the reference cannot be used; the sentence says why.
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
    """Return the script or module to run.

    Raises:
        UsageError: Neither a script nor a module is named, or both are.
    """
    if (script is None) == (module is None):
        raise UsageError("name the script to run: memprof run train.py, or a module: memprof run -m package.train")
    return ScriptSpec(path=script, module=module, arguments=arguments)
