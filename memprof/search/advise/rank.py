"""The work behind `memprof advise`: weigh every change, and the combinations that make the difference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from memprof.documents.advice import Figures, Suggestion
from memprof.documents.jobs import Step, Weighing, Weight, Weights
from memprof.documents.wording import category_title, phase_words
from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import ExitCode, MemprofError
from memprof.search.advise.changes import MICRO_BATCH, Change, Setup, combinations_of, possible_changes
from memprof.units import format_share, format_size
from memprof.workers.pool import Workers
from memprof.workers.progress import Teller

# A saving below this share of the peak is none.
NEGLIGIBLE = 0.01


def saves_nothing(now: Figures, saves_bytes: int) -> bool:
    """Whether a saving is not worth the change."""
    return saves_bytes < NEGLIGIBLE * now.peak_bytes


def why_nothing(now: Figures, then: Figures, parts: set[str]) -> str:
    """Return why a peak stays where it is.

    Args:
        now: the training as it is.
        then: the training with the change.
        parts: of the training that the change is about.
    """
    total = sum(now.held.values()) or 1
    less = total - sum(then.held.values())
    if less >= NEGLIGIBLE * now.peak_bytes:
        return f"{format_size(less)} less are allocated, but as much has to be reserved: it is fragmentation that stays"
    category, size = max(now.held.items(), key=lambda item: item[1], default=("nothing", 0))
    what = f"{category_title(category)} ({format_share(size / total)}) in {phase_words(now.held_phase)} set the peak"
    if "optimizer" in parts:
        state = now.held.get("optimizer_state", 0)
        return f"{what}; the optimizer's state is {format_share(state / total)} of it"
    if then.peak_bytes > now.peak_bytes:
        return f"it takes more: {what}"
    return what


_MOST_COMBINATIONS = 6
_Group = tuple[Change, ...]


@dataclass
class Scales:
    """Weighs setups of one workload on one device, those with the same recipe together.

    Attributes:
        workload: what is trained.
        device: its resolved name.
        capacity_bytes: what is usable of it.
        workers: do the tracing.
        teller: told about each recipe.
        weights: by a setup's key.
        evaluations: recipes that were traced.
    """

    workload: WorkloadSpec
    device: str
    capacity_bytes: int
    workers: Workers
    teller: Teller
    weights: dict[tuple[str, ...], Weight] = field(default_factory=dict)
    evaluations: int = 0

    def weigh(self, setups: Iterable[Setup]) -> None:
        """Weigh all setups: one trace for each recipe and batch size."""
        cases: dict[tuple[str, int], list[Setup]] = {}
        for setup in {setup.key: setup for setup in setups}.values():
            cases.setdefault((setup.traced_recipe.model_dump_json(), setup.batch_size), []).append(setup)
        groups = list(cases.values())
        jobs = [self._job(group) for group in groups]
        done = 0

        def on_finish(number: int) -> None:
            nonlocal done
            done += 1
            self.teller.tell("weighing changes", "predict", stage="step", step=done, steps=len(jobs))

        self.teller.begin("weighing changes", "predict")
        answers = self.workers.run(jobs, _ignore, on_finish)
        self.teller.tell(f"{len(jobs)} recipes weighed", "predict", stage="done")
        self.evaluations += len(jobs)
        for group, job, answer in zip(groups, jobs, answers, strict=True):
            assert isinstance(answer, Weights)
            for setup in group:
                row = answer.weights[job.optimizers.index(setup.optimizer)]
                self.weights[setup.key] = row[job.confs.index(setup.conf)]

    def _job(self, group: Sequence[Setup]) -> Weighing:
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
    """A weighing is one trace: there is nothing to tell until it ends."""


def advise(setup: Setup, cuda: bool, scales: Scales) -> tuple[Figures, list[Suggestion]]:
    """Return what a training takes, and what can be changed, the best first.

    Raises:
        MemprofError: the training cannot be predicted as it is.
    """
    changes = possible_changes(setup, cuda)
    groups: list[_Group] = [(), *((change,) for change in changes), *combinations_of(changes)]
    setups = {group: _applied(setup, group) for group in groups}
    scales.weigh(setups.values())
    now = _figures(scales.weights[setup.key])
    if now is None:
        raise MemprofError(scales.weights[setup.key].reason or "nothing was predicted", ExitCode.USAGE)
    found = {group: _suggestion(group, scales.weights[setups[group].key], now) for group in groups if group}
    singles = [found[(change,)] for change in _worth_showing(changes, found)]
    return now, sorted([*singles, *_combined(found, now)], key=_rank)


def _applied(setup: Setup, group: _Group) -> Setup:
    for change in group:
        setup = change.apply(setup)
    return setup


def _figures(weight: Weight) -> Figures | None:
    if weight.bytes is None:
        return None
    return Figures(
        peak_bytes=weight.bytes,
        fits=weight.fits,
        phase=weight.phase,
        held=weight.held,
        held_phase=weight.held_phase,
    )


def _suggestion(group: _Group, weight: Weight, now: Figures) -> Suggestion:
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


def _worth_showing(changes: Sequence[Change], found: dict[_Group, Suggestion]) -> list[Change]:
    """Leave out the micro-batches that are smaller than they have to be, or not small enough."""
    sizes = [change for change in changes if change.part == MICRO_BATCH]
    enough = next((change for change in sizes if found[(change,)].fits), None)
    kept = [enough] if enough is not None else sizes[-1:]
    return [change for change in changes if change.part != MICRO_BATCH or change in kept]


def _combined(found: dict[_Group, Suggestion], now: Figures) -> list[Suggestion]:
    """Return the combinations that fit where no part of them does; or the one that comes nearest."""
    if now.fits:
        return []
    fitting = {group for group, suggestion in found.items() if suggestion.fits}
    least = [group for group in fitting if len(group) > 1 and not any(set(one) < set(group) for one in fitting)]
    if fitting:
        return sorted((found[group] for group in least), key=_rank)[:_MOST_COMBINATIONS]
    weighed = [s for group, s in found.items() if len(group) > 1 and s.figures is not None]
    return sorted(weighed, key=lambda suggestion: -(suggestion.saves_bytes or 0))[:1]


def _rank(suggestion: Suggestion) -> tuple[bool, int, int, int]:
    """Order: what fits first, by how little it disturbs; the rest by what it saves."""
    saves = suggestion.saves_bytes if suggestion.saves_bytes is not None else -(1 << 62)
    if suggestion.fits:
        return False, suggestion.disturbance, len(suggestion.changes), -saves
    return True, 0, -saves if saves > 0 else 0, suggestion.disturbance
