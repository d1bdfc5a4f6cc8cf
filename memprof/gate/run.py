"""Runs a gate from configuration to report: measures, judges, explains, and updates the baseline if asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memprof.devices.host import memprof_version
from memprof.errors import ExitCode, MemprofError, UsageError
from memprof.files import check_writable, write_text
from memprof.gate.baseline import Baseline, BaselineChange, empty_baseline, load_baseline, update
from memprof.gate.config import Budget, Config
from memprof.gate.entry_figures import Figures, wanted_setup
from memprof.gate.explain import context, explain, largest_holders
from memprof.gate.judge import Policy, judge, within
from memprof.gate.measure import BudgetRunner, measure_all
from memprof.gate.metrics import METRICS, Metric
from memprof.gate.report import ConfigLocation, Report, exit_code
from memprof.gate.verdict import Verdict, metric_of
from memprof.workers.progress import OnProgress

# The figures that a smaller batch reduces and that the search for the largest batch can limit.
_BATCHED = ("peak_allocated_bytes", "peak_reserved_bytes")
OnReport = Callable[[Report], None]
Largest = Callable[[Budget, str, int], "int | None"]


@dataclass
class GateRun:
    """One run of the gate.

    Attributes:
        config: The configuration.
        budgets: The entries to run.
        baseline_path: The path of the baseline.
        policy: How strict the gate is.
        updating: Whether the figures are to be accepted.
        complete: Whether all entries of the configuration are run.
        accept: The command that accepts the figures.
        baseline: The baseline; an empty one if there is no file.
        had_baseline: Whether there was a file.
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
        """Check everything that can be checked without running anything.

        Raises:
            UsageError: The baseline is damaged, cannot be written, or does not exist although a limit needs it.
            MemprofError: There is no entry to run.
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
        """Run the entries.

        Args:
            on_progress: A function that is called with every progress event.
            on_report: A function that is called after every trial with the unfinished report.

        Returns:
            The report.
        """
        with BudgetRunner(self.config.path.resolve().parent, on_progress) as runner:
            figures = measure_all(runner, self.budgets, lambda made: on_report(self.unfinished(made)))
            return self.report(figures, runner.largest_batch)

    def report(self, figures: Sequence[Figures], largest: Largest | None = None) -> Report:
        """Judge figures that were just made or were saved earlier, and update the baseline if that was asked for.

        Args:
            figures: The figures.
            largest: A function that finds the largest batch size within a bound; None to leave that advice out.

        Returns:
            The report.
        """
        changes: list[BaselineChange] = []
        baseline = self.baseline
        if self.updating:
            baseline, changes = self._updated(figures)
        verdicts = self._judge(figures, baseline)
        explained = [self._explained(verdict, figures, largest) for verdict in verdicts]
        return self._as_report(figures, explained, changes, exit_code(explained, figures))

    def refuse_other_setups(self, name: str, figures: Sequence[Figures]) -> None:
        """Refuse saved figures that belong to other arguments than those of the entries.

        Args:
            name: The name of the file with the figures.
            figures: The saved figures.

        Raises:
            UsageError: The figures of an entry were made with other arguments.
        """
        for budget in self.budgets:
            for one in figures:
                if one.entry == budget.name and one.status != "failed":
                    refuse_other_setup(name, budget, one)

    def unfinished(self, figures: Sequence[Figures]) -> Report:
        """Return the report on the runs so far; runs that are not finished have the verdict `missing`."""
        return self._as_report(figures, self._judge(figures, self.baseline), [], ExitCode.INTERRUPTED)

    def _judge(self, figures: Sequence[Figures], baseline: Baseline) -> list[Verdict]:
        expected = [budget.name for budget in self.config.budgets] if self.complete else None
        return judge(self.budgets, figures, baseline, self.policy, expected)

    def _as_report(
        self, figures: Sequence[Figures], verdicts: list[Verdict], changes: list[BaselineChange], code: ExitCode
    ) -> Report:
        known = self.had_baseline or self.updating
        file = _path_in_repository(self.config.path)
        return Report(
            schema="memprof.gate/1",
            memprof=memprof_version(),
            config=self.config.path.name,
            baseline=self.baseline_path.name if known else None,
            places={budget.name: ConfigLocation(file=file, line=budget.line) for budget in self.config.budgets},
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

    def _updated(self, figures: Sequence[Figures]) -> tuple[Baseline, list[BaselineChange]]:
        known = [budget.name for budget in self.config.budgets]
        baseline, changes = update(self.baseline, figures, known, self.complete)
        if changes:
            write_text(self.baseline_path, baseline.to_json())
        return baseline, changes

    def _explained(self, verdict: Verdict, figures: Sequence[Figures], largest: Largest | None) -> Verdict:
        """Add to a verdict why it changed from the baseline before this run, and what would meet the limit."""
        made = next((f for f in figures if (f.entry, f.optimizer) == (verdict.entry, verdict.optimizer)), None)
        if made is None or verdict.status not in ("exceeded", "does-not-fit", "improved"):
            return verdict
        metric = metric_of(verdict) or METRICS["peak_reserved_bytes"]
        base = self.baseline.record(verdict.entry, verdict.optimizer)
        why = explain(metric, base, made) if base is not None else largest_holders(metric, made)
        if base is not None and why == context(base, made):  # no category changed, so the limit must be new
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


def _path_in_repository(path: Path) -> str:
    """Return a path for annotations, relative to the repository if the CI runner names it, else to this folder."""
    root = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    whole = path.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else path.name


def refuse_other_setup(name: str, budget: Budget, made: Figures) -> None:
    """Refuse saved figures that were made with other arguments than those of the entry.

    Args:
        name: The name of the file with the figures.
        budget: The entry.
        made: The saved figures.

    Raises:
        UsageError: An argument differs; the message names it.
    """
    wanted, found = (
        {
            "model" if one.batch_size else "script": one.model,
            "batch_size": one.batch_size,
            **one.knobs,
            "recipe": one.recipe,
        }
        for one in (wanted_setup(budget), made.setup)
    )
    other = next((key for key in wanted if wanted[key] != found.get(key)), None)
    if other is not None:
        raise UsageError(
            f"{name} has figures of {budget.name} with {other} {found.get(other)!r}, and the entry says "
            f"{wanted[other]!r}; run the gate again"
        )


def optimizers_within(metric: Metric, bound: int, made: Sequence[Figures]) -> list[str]:
    """Return the finished runs whose figure keeps to a bound, as `optimizer sm3 (9.78 GiB)`, with the best first."""
    good = [
        (one.values[metric.name], one.optimizer)
        for one in made
        if one.status == "ok" and metric.name in one.values and within(metric, one.values[metric.name], bound)
    ]
    good.sort(reverse=metric.higher_is_better)
    return [f"optimizer {spec} ({metric.text(value)})" for value, spec in good]
