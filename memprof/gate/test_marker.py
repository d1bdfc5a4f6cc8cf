"""Checks the budget of a test, `@pytest.mark.memory_budget(...)`, from keywords to verdicts. It imports no pytest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memprof.errors import ExitCode, MemprofError, UsageError, did_you_mean
from memprof.gate.baseline import empty_baseline
from memprof.gate.config import KEYS, Budget, read_config
from memprof.gate.config_file import ConfigFile, find_config
from memprof.gate.entry_figures import Figures
from memprof.gate.explain import largest_holders
from memprof.gate.judge import Policy, judge
from memprof.gate.measure import BudgetRunner
from memprof.gate.metrics import METRICS
from memprof.gate.verdict import Verdict, metric_of
from memprof.gate.wording import details, headline

# Short names for the keywords of the marker; the full names are accepted as well.
ALIASES = {
    "peak": "peak_allocated_bytes",
    "reserved": "peak_reserved_bytes",
    "state": "state_bytes",
    "process": "process_bytes",
    "optimizer": "optimizers",
}


@dataclass(frozen=True)
class CheckedBudget:
    """The result of a marker's budget.

    Attributes:
        figures: The figures of each optimizer.
        verdicts: The verdict on each limit.
    """

    figures: tuple[Figures, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def failed(self) -> bool:
        """Whether the test fails."""
        return any(verdict.weight == "error" for verdict in self.verdicts)

    def text(self) -> str:
        """Return the verdicts in words: a paragraph for each exceeded limit, then a line for each limit that holds."""
        ordered = sorted(self.verdicts, key=lambda verdict: verdict.weight != "error")
        return "\n".join(line for verdict in ordered for line in _lines(verdict))


def read_marker(
    name: str, path: Path, model: str, knobs: Mapping[str, Any], keywords: Mapping[str, Any], root: Path
) -> Budget:
    """Return the budget that a marker's keywords set. The project's configuration gives the defaults.

    Args:
        name: The name of the test.
        path: The path of the test's file.
        model: The model to train if the keywords name none, and no script.
        knobs: The parameters of the test.
        keywords: The keywords of the marker.
        root: The folder where the search for the project's configuration begins.

    Returns:
        The budget.

    Raises:
        UsageError: A keyword is unknown, or a value is not valid.
    """
    entry: dict[str, Any] = {} if "script" in keywords else {"model": model, "knobs": dict(knobs)}
    for key, value in keywords.items():
        if key not in (*ALIASES, *KEYS):
            raise UsageError(f"@pytest.mark.memory_budget has no key {key!r}{did_you_mean(key, [*ALIASES, *KEYS])}")
        entry[ALIASES.get(key, key)] = value
    for key in ("optimizers", "inputs"):
        if key in entry:
            entry[key] = [entry[key]] if isinstance(entry[key], str) else list(entry[key])
    if not entry.get("knobs", True):
        del entry["knobs"]
    file = ConfigFile(path, "", {"defaults": _project_defaults(root), "budgets": {name: entry}}, "")
    try:
        (budget,) = read_config(file).budgets
    except UsageError as error:
        raise UsageError(str(error).replace(f"{file.where(f'budgets.{name}')}", "@pytest.mark.memory_budget")) from None
    relative = next((limit for limit in budget.limits if limit.relative), None)
    if relative is not None:
        raise UsageError(
            f"@pytest.mark.memory_budget has no baseline for {relative.metric.name} = {relative.text!r}; write a size, "
            "or an entry for `memprof gate`"
        )
    return budget


def check(runner: BudgetRunner, budget: Budget) -> CheckedBudget:
    """Run a marker's budget and judge its figures."""
    figures = runner.measure(budget, lambda _: None)
    verdicts = judge([budget], figures, empty_baseline(), Policy())
    return CheckedBudget(tuple(figures), tuple(_explained(verdict, figures) for verdict in verdicts))


@contextmanager
def budget_runner(folder: Path) -> Iterator[BudgetRunner]:
    """Start a budget runner whose workers have the import path of this process."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    runner = BudgetRunner(folder)
    try:
        runner.__enter__()
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ.update({"PYTHONPATH": before} if before is not None else {})
    with_error: tuple[Any, ...] = (None, None, None)
    try:
        yield runner
    finally:
        runner.__exit__(*with_error)


def _project_defaults(root: Path) -> dict[str, Any]:
    """Return the defaults of the project's configuration, without its limits."""
    try:
        defaults = find_config(root).table.get("defaults", {})
    except MemprofError as error:
        if error.exit_code != ExitCode.NOTHING_TO_DO:
            raise
        return {}
    return {key: value for key, value in defaults.items() if key not in METRICS} if isinstance(defaults, dict) else {}


def _explained(verdict: Verdict, figures: list[Figures]) -> Verdict:
    made = next((one for one in figures if one.optimizer == verdict.optimizer), None)
    if made is None or verdict.weight == "ok":
        return verdict
    metric = metric_of(verdict) or METRICS["peak_reserved_bytes"]
    return verdict.model_copy(update={"why": largest_holders(metric, made)})


def _lines(verdict: Verdict) -> list[str]:
    below = details(verdict) if verdict.weight != "ok" else []
    return [headline(verdict), *(f"  {word}: {sentence}" for word, sentence in below)]
