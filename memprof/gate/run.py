"""One gate from configuration to report: measure, judge, explain, and update the baseline where asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memprof.devices.host import memprof_version
from memprof.errors import ExitCode, MemprofError, UsageError
from memprof.files import check_writable, write_text
from memprof.gate.baseline import Baseline, Change, empty_baseline, load_baseline, update
from memprof.gate.config import Budget, Config
from memprof.gate.entry_figures import Figures
from memprof.gate.explain import context, explain, largest_holders
from memprof.gate.judge import Policy, judge, within
from memprof.gate.measure import Gauge, measure_all
from memprof.gate.metrics import METRICS, Metric
from memprof.gate.report import Place, Report, exit_code
from memprof.gate.verdict import Verdict, metric_of
from memprof.workers.progress import OnProgress

# What a smaller batch helps against: the figures that grow with it and that a search can fill.
_BATCHED = ("peak_allocated_bytes", "peak_reserved_bytes")
OnReport = Callable[[Report], None]
Largest = Callable[[Budget, str, int], "int | None"]


@dataclass
class Session:
    """A gate.

    Attributes:
        config: the configuration.
        budgets: the entries to run.
        baseline_path: where the accepted figures are.
        policy: how strict to be.
        updating: accept the figures.
        complete: all entries of the configuration are run.
        accept: the command that accepts the figures.
    """

    config: Config
    budgets: Sequence[Budget]
    baseline_path: Path
    policy: Policy
    updating: bool
    complete: bool
    accept: str
    baseline: Baseline = field(init=False)
    had_baseline: bool = field(init=False)
    _searched: dict[tuple[str, str, int], int | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Check all that can be checked without running anything.

        Raises:
            UsageError: the baseline is damaged, missing where a limit needs one, or cannot be written.
            MemprofError: there is no entry to run.
        """
        if not self.budgets:
            raise MemprofError(
                f"{self.config.path.name} has no budget to run (those at level off do not count); "
                "`memprof gate init MODEL` writes one",
                ExitCode.NOTHING_TO_DO,
            )
        loaded = load_baseline(self.baseline_path)
        self.baseline = loaded or empty_baseline()
        self.had_baseline = loaded is not None
        if self.updating:
            check_writable(self.baseline_path, force=True)
        elif loaded is None:
            self._refuse_change_without_baseline()

    def run(self, on_progress: OnProgress | None, on_report: OnReport) -> Report:
        """Run the entries and return the report; `on_report` is given what is known after every trial."""
        with Gauge(self.config.path.resolve().parent, on_progress) as gauge:
            figures = measure_all(gauge, self.budgets, lambda made: on_report(self.unfinished(made)))
            return self.report(figures, gauge.largest_batch)

    def report(self, figures: Sequence[Figures], largest: Largest | None = None) -> Report:
        """Return the report on figures, however they were made, and update the baseline where that was asked."""
        changes: list[Change] = []
        baseline = self.baseline
        if self.updating:
            baseline, changes = self._updated(figures)
        verdicts = self._judge(figures, baseline)
        explained = [self._explained(verdict, figures, largest) for verdict in verdicts]
        return self._as_report(figures, explained, changes, exit_code(explained, figures))

    def refuse_other_setups(self, name: str, figures: Sequence[Figures]) -> None:
        """Refuse saved figures of something else than what the entries say: they would judge another program.

        Raises:
            UsageError: an entry's figures were made with other arguments.
        """
        for budget in self.budgets:
            for one in figures:
                if one.entry == budget.name and one.status != "failed":
                    refuse_other_setup(name, budget, one)

    def unfinished(self, figures: Sequence[Figures]) -> Report:
        """Return the report on what has been run so far: what was not run yet is missing."""
        return self._as_report(figures, self._judge(figures, self.baseline), [], ExitCode.INTERRUPTED)

    def _judge(self, figures: Sequence[Figures], baseline: Baseline) -> list[Verdict]:
        expected = [budget.name for budget in self.config.budgets] if self.complete else None
        return judge(self.budgets, figures, baseline, self.policy, expected)

    def _as_report(
        self, figures: Sequence[Figures], verdicts: list[Verdict], changes: list[Change], code: ExitCode
    ) -> Report:
        known = self.had_baseline or self.updating
        file = _from_the_repository(self.config.path)
        return Report(
            schema="memprof.gate/1",
            memprof=memprof_version(),
            config=self.config.path.name,
            baseline=self.baseline_path.name if known else None,
            places={budget.name: Place(file=file, line=budget.line) for budget in self.config.budgets},
            figures=list(figures),
            verdicts=verdicts,
            changes=changes,
            updated=self.updating,
            accept=self.accept,
            exit_code=int(code),
        )

    def _refuse_change_without_baseline(self) -> None:
        for budget in self.budgets:
            for limit in budget.limits:
                if limit.relative:
                    place = f"{budget.file}:{budget.line}" if budget.line else budget.file
                    raise UsageError(
                        f"{place}: {budget.name} limits {limit.metric.name} to {limit.text} against the baseline, and "
                        f"there is no {self.baseline_path.name}; make it with `{self.accept}`"
                    )

    def _updated(self, figures: Sequence[Figures]) -> tuple[Baseline, list[Change]]:
        known = [budget.name for budget in self.config.budgets]
        baseline, changes = update(self.baseline, figures, known, self.complete)
        if changes:
            write_text(self.baseline_path, baseline.to_json())
        return baseline, changes

    def _explained(self, verdict: Verdict, figures: Sequence[Figures], largest: Largest | None) -> Verdict:
        """Add why it is so, against what was accepted before this run, and what would meet the limit."""
        made = next((f for f in figures if (f.entry, f.optimizer) == (verdict.entry, verdict.optimizer)), None)
        if made is None or verdict.status not in ("exceeded", "does-not-fit", "improved"):
            return verdict
        metric = metric_of(verdict) or METRICS["peak_reserved_bytes"]
        base = self.baseline.record(verdict.entry, verdict.optimizer)
        why = explain(metric, base, made) if base is not None else largest_holders(metric, made)
        if base is not None and why == context(base, made):  # it is as it was: the ceiling is what is new
            why += largest_holders(metric, made)
        remedies = [] if verdict.status == "improved" else self._remedies(verdict, metric, figures, largest)
        return verdict.model_copy(update={"why": why, "remedies": remedies})

    def _remedies(
        self, verdict: Verdict, metric: Metric, figures: Sequence[Figures], largest: Largest | None
    ) -> list[str]:
        """Return the optimizers of the entry, and the batch size, that would meet an absolute limit."""
        made = [one for one in figures if one.entry == verdict.entry]
        own = next(one for one in made if one.optimizer == verdict.optimizer)
        bound = verdict.bound if verdict.status == "exceeded" else own.capacity_bytes
        if bound is None or verdict.base is not None:
            return []
        remedies = optimizers_within(metric, bound, made)
        budget = next(budget for budget in self.budgets if budget.name == verdict.entry)
        if largest is None or (verdict.status == "exceeded" and metric.name not in _BATCHED):
            return remedies
        asked = (budget.name, verdict.optimizer, bound)
        if asked not in self._searched:
            self._searched[asked] = largest(budget, verdict.optimizer, bound)
        found = self._searched[asked]
        if found is not None:
            remedies.append(f"batch_size = {found}{' (predicted)' if own.source == 'measured' else ''}")
        return remedies


def _from_the_repository(path: Path) -> str:
    """Return a path as annotations name it: from the repository's root where a runner says it, else from here."""
    root = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    whole = path.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else path.name


def refuse_other_setup(name: str, budget: Budget, made: Figures) -> None:
    """Refuse saved figures that were made with other arguments than the entry's.

    Raises:
        UsageError: with what differs.
    """
    settings, setup = budget.settings, made.setup
    wanted: dict[str, Any] = {"model": settings.model, "batch_size": settings.batch_size, **settings.knobs}
    found: dict[str, Any] = {"model": setup.model, "batch_size": setup.batch_size, **setup.knobs}
    wanted |= {"recipe": budget.recipe.model_dump(mode="json", exclude_defaults=True)}
    found |= {"recipe": setup.recipe}
    other = next((key for key in wanted if wanted[key] != found.get(key)), None)
    if other is not None:
        raise UsageError(
            f"{name} has figures of {budget.name} with {other} {found.get(other)!r}, and the entry says "
            f"{wanted[other]!r}; run the gate again"
        )


def optimizers_within(metric: Metric, bound: int, made: Sequence[Figures]) -> list[str]:
    """Return the finished runs whose figure keeps to a bound, as `optimizer sm3 (9.78 GiB)`, the best first."""
    good = [
        (one.values[metric.name], one.optimizer)
        for one in made
        if one.status == "ok" and metric.name in one.values and within(metric, one.values[metric.name], bound)
    ]
    good.sort(reverse=metric.lower)
    return [f"optimizer {spec} ({metric.text(value)})" for value, spec in good]
