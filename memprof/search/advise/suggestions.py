"""The work behind `memprof advise`: predicts every change, and the combinations of changes that make the difference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from memprof.documents.advice import PredictedFigures, Suggestion
from memprof.documents.jobs import Step, Weighing, Weight, Weights
from memprof.documents.wording import category_title, phase_words
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import ExitCode, MemprofError
from memprof.search.advise.changes import MICRO_BATCH, SetupChange, TrainingSetup, combinations_of, possible_changes
from memprof.units import format_share, format_size
from memprof.workers.pool import Workers
from memprof.workers.progress import ProgressReporter

# A saving below this share of the peak counts as none.
NEGLIGIBLE = 0.01


def saves_nothing(now: PredictedFigures, saves_bytes: int) -> bool:
    """Return whether a saving is too small to be worth the change.

    Args:
        now: The predicted memory of the present training.
        saves_bytes: The saving, in bytes.
    """
    return saves_bytes < NEGLIGIBLE * now.peak_bytes


def why_nothing(now: PredictedFigures, then: PredictedFigures, parts: set[str]) -> str:
    """Return the reason why a change does not lower the peak.

    Args:
        now: The present training.
        then: The training with the change.
        parts: The parts of the training that are changed.
    """
    total = sum(now.held.values()) or 1
    less = total - sum(then.held.values())
    if less >= NEGLIGIBLE * now.peak_bytes:
        return f"{format_size(less)} less is allocated, but fragmentation keeps the reserved memory as high as before"
    category, size = max(now.held.items(), key=lambda item: item[1], default=("nothing", 0))
    what = f"{category_title(category)} ({format_share(size / total)}) in {phase_words(now.held_phase)} set the peak"
    if "optimizer" in parts:
        state = now.held.get("optimizer_state", 0)
        return f"{what}; the optimizer's state is {format_share(state / total)} of it"
    if then.peak_bytes > now.peak_bytes:
        return f"it takes more: {what}"
    return what


_MOST_COMBINATIONS = 6
_Combination = tuple[SetupChange, ...]


@dataclass
class SetupEvaluator:
    """Predicts the peaks of setups of one workload on one device. Setups with the same recipe share a trace.

    Attributes:
        workload: The workload that is trained.
        device: The resolved name of the device.
        capacity_bytes: The memory that training may use there, in bytes.
        workers: The workers that trace.
        reporter: Reports the progress after each recipe.
        results: The predicted peak of each setup, by the setup's key.
        evaluations: The number of recipes that were traced.
    """

    workload: WorkloadSpec
    device: str
    capacity_bytes: int
    workers: Workers
    reporter: ProgressReporter
    results: dict[tuple[str, ...], Weight] = field(default_factory=dict)
    evaluations: int = 0

    def evaluate(self, setups: Iterable[TrainingSetup]) -> None:
        """Predict all setups, with one trace for each recipe and batch size, and store the results."""
        cases: dict[tuple[str, int], list[TrainingSetup]] = {}
        for setup in {setup.key: setup for setup in setups}.values():
            cases.setdefault((setup.traced_recipe.model_dump_json(), setup.batch_size), []).append(setup)
        groups = list(cases.values())
        jobs = [self._job(group) for group in groups]
        done = 0

        def on_finish(number: int) -> None:
            nonlocal done
            done += 1
            self.reporter.report("predicting changes", "predict", stage="step", step=done, steps=len(jobs))

        self.reporter.begin("predicting changes", "predict")
        answers = self.workers.run(jobs, _ignore, on_finish)
        self.reporter.report(f"{len(jobs)} recipes predicted", "predict", stage="done")
        self.evaluations += len(jobs)
        for group, job, answer in zip(groups, jobs, answers, strict=True):
            assert isinstance(answer, Weights)
            for setup in group:
                row = answer.weights[job.optimizers.index(setup.optimizer)]
                self.results[setup.key] = row[job.confs.index(setup.conf)]

    def _job(self, group: Sequence[TrainingSetup]) -> Weighing:
        texts = {setup.optimizer.text: setup.optimizer for setup in group}
        return Weighing(
            workload=self.workload,
            optimizers=list(texts.values()),
            recipe=group[0].traced_recipe,
            batch_size=group[0].batch_size,
            device=self.device,
            capacity_bytes=self.capacity_bytes,
            confs=list(dict.fromkeys(setup.conf for setup in group)),
        )


def _ignore(number: int, step: Step) -> None:
    """Report nothing, because each of these jobs is a single trace without intermediate steps."""


def suggest(setup: TrainingSetup, cuda: bool, evaluator: SetupEvaluator) -> tuple[PredictedFigures, list[Suggestion]]:
    """Predict a training as it is, and suggest changes.

    Args:
        setup: The present setup.
        cuda: Whether it trains on a GPU, with PyTorch's caching allocator.
        evaluator: Predicts the setups.

    Returns:
        The figures of the present training, and the suggestions, the best first.

    Raises:
        MemprofError: The training cannot be predicted as it is.
    """
    changes = possible_changes(setup, cuda)
    groups: list[_Combination] = [(), *((change,) for change in changes), *combinations_of(changes)]
    setups = {group: _applied(setup, group) for group in groups}
    evaluator.evaluate(setups.values())
    now = _figures(evaluator.results[setup.key])
    if now is None:
        raise MemprofError(evaluator.results[setup.key].reason or "nothing was predicted", ExitCode.USAGE)
    found = {group: _suggestion(group, evaluator.results[setups[group].key], now) for group in groups if group}
    singles = [found[(change,)] for change in _worth_showing(changes, found)]
    return now, sorted([*singles, *_combined(found, now)], key=_rank)


def _applied(setup: TrainingSetup, group: _Combination) -> TrainingSetup:
    for change in group:
        setup = change.apply(setup)
    return setup


def _figures(weight: Weight) -> PredictedFigures | None:
    if weight.bytes is None:
        return None
    return PredictedFigures(
        peak_bytes=weight.bytes,
        fits=weight.fits,
        phase=weight.phase,
        held=weight.held,
        held_phase=weight.held_phase,
    )


def _suggestion(group: _Combination, weight: Weight, now: PredictedFigures) -> Suggestion:
    figures = _figures(weight)
    saves = None if figures is None else now.peak_bytes - figures.peak_bytes
    nothing = figures is not None and saves is not None and saves_nothing(now, saves)
    return Suggestion(
        changes=[change.name for change in group],
        how=" ".join(change.how for change in group),
        effects=[change.effect for change in group],
        disturbance=max(change.disturbance for change in group),
        figures=figures,
        saves_bytes=saves,
        remark=why_nothing(now, figures, {change.part for change in group}) if nothing and figures else None,
        reason=weight.reason,
    )


def _worth_showing(changes: Sequence[SetupChange], found: dict[_Combination, Suggestion]) -> list[SetupChange]:
    """Leave out the micro-batches that are smaller than they have to be, and those that are not small enough."""
    sizes = [change for change in changes if change.part == MICRO_BATCH]
    enough = next((change for change in sizes if found[(change,)].fits), None)
    kept = [enough] if enough is not None else sizes[-1:]
    return [change for change in changes if change.part != MICRO_BATCH or change in kept]


def _combined(found: dict[_Combination, Suggestion], now: PredictedFigures) -> list[Suggestion]:
    """Return the combinations that fit although no part of them fits, or else the one that comes nearest to it."""
    if now.fits:
        return []
    fitting = {group for group, suggestion in found.items() if suggestion.fits}
    least = [group for group in fitting if len(group) > 1 and not any(set(one) < set(group) for one in fitting)]
    if fitting:
        return sorted((found[group] for group in least), key=_rank)[:_MOST_COMBINATIONS]
    weighed = [s for group, s in found.items() if len(group) > 1 and s.figures is not None]
    return sorted(weighed, key=lambda suggestion: -(suggestion.saves_bytes or 0))[:1]


def _rank(suggestion: Suggestion) -> tuple[bool, int, int, int]:
    """Return the sort key: suggestions that fit come first, ordered by disturbance; the others by what they save."""
    saves = suggestion.saves_bytes if suggestion.saves_bytes is not None else -(1 << 62)
    if suggestion.fits:
        return False, suggestion.disturbance, len(suggestion.changes), -saves
    return True, 0, -saves if saves > 0 else 0, suggestion.disturbance
