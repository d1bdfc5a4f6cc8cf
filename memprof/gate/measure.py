"""Runs the entries one after another in workers of one fork server. An entry that fails does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memprof.documents.comparison import Comparison
from memprof.documents.script import ScriptSpec
from memprof.errors import ExitCode, MemprofError
from memprof.gate.config import Budget
from memprof.gate.entry_figures import Figures, Fingerprint, best_of, figures_of, wanted_setup
from memprof.gate.init import trained
from memprof.gate.measure_fits import add_fits, is_here, largest_batch
from memprof.script_comparison import ScriptFailedError
from memprof.workers.launcher import Launcher
from memprof.workers.progress import OnProgress

# A capacity that no device reaches. A prediction with it shows how much memory a run that does not fit would take.
_UNLIMITED_BYTES = 2**60


class BudgetRunner:
    """Runs budgets and returns their figures; use it in a `with` block, which starts and ends the workers.

    Args:
        folder: The folder of the configuration. Paths of model files are relative to it.
        on_progress: A function that is called with every progress event.
    """

    def __init__(self, folder: Path, on_progress: OnProgress | None = None) -> None:
        self._folder = folder
        self._on_progress = on_progress
        self._launcher: Launcher | None = None

    def __enter__(self) -> BudgetRunner:
        with _inside(self._folder):
            self._launcher = Launcher()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._launcher is not None:
            self._launcher.__exit__(*error)

    def measure(self, budget: Budget, keep: Callable[[list[Figures]], None]) -> list[Figures]:
        """Run an entry.

        Args:
            budget: The entry.
            keep: A function that is called after every trial with the entry's figures so far.

        Returns:
            The figures of each optimizer. If the entry could not be run, they contain the reason.
        """

        def keep_comparison(comparison: Comparison) -> None:
            keep(figures_of(budget.name, comparison))

        try:
            comparison = self._compare(budget, keep_comparison)
            found = figures_of(budget.name, comparison)
            if any(figures.source == "measured" for figures in found):
                found = self._repeated(budget, found)
            found = self._beyond(budget, found)
            if budget.needs_fit and not is_here(budget.settings.device):
                found = add_fits(budget, found, trained(comparison)[0].scale, self._launcher, self._on_progress)
        except MemprofError as error:
            found = [broken_figures(budget, optimizer, error) for optimizer in budget.optimizers]
        keep(found)
        return found

    def largest_batch(self, budget: Budget, optimizer: str, bound: int) -> int | None:
        """Return the largest batch size below the entry's own whose peak stays within a bound in bytes, or None.

        A script has a batch size of its own, of which nobody knows where it is.
        """
        if budget.script is not None:
            return None
        return largest_batch(budget, optimizer, bound, self._launcher, self._on_progress)

    def _compare(
        self,
        budget: Budget,
        on_comparison: Callable[[Comparison], None] | None = None,
        optimizers: Sequence[str] = (),
        capacity: int | None = None,
        again: bool = False,
    ) -> Comparison:
        from memprof.api import compare

        settings = budget.settings
        limit = budget.capacity_bytes if capacity is None else capacity
        if budget.script is not None:
            return self._run_script(budget, budget.script, on_comparison, optimizers or budget.optimizers, limit)
        return compare(
            settings.model or "",
            batch_size=settings.batch_size,
            knobs=settings.knobs,
            inputs=settings.inputs,
            target=settings.target,
            optimizers=optimizers or budget.optimizers,
            device=settings.device,
            recipe=budget.recipe,
            budget=limit,
            fit=budget.needs_fit and is_here(settings.device) and not again,
            on_progress=self._on_progress,
            on_comparison=on_comparison,
            launcher=self._launcher,
        )

    def _run_script(
        self,
        budget: Budget,
        script: ScriptSpec,
        on_comparison: Callable[[Comparison], None] | None,
        optimizers: Sequence[str],
        limit: int | None,
    ) -> Comparison:
        from memprof.api_run import run

        return run(
            script.path,
            script.arguments,
            module=script.module,
            optimizers=optimizers,
            device=budget.settings.device,
            steps=budget.steps,
            budget=limit,
            on_progress=self._on_progress,
            on_comparison=on_comparison,
            launcher=self._launcher,
        )

    def _repeated(self, budget: Budget, first: list[Figures]) -> list[Figures]:
        """Repeat the measurement as often as the budget asks; the search for the largest batch is not repeated."""
        repeats = [figures_of(budget.name, self._compare(budget, again=True)) for _ in range(budget.repeats - 1)]
        best = [best_of(same) for same in zip(first, *repeats, strict=True)]
        return [
            one.model_copy(update={"values": {**begun.values, **one.values}}) if one.status == "ok" else one
            for begun, one in zip(first, best, strict=True)
        ]

    def _beyond(self, budget: Budget, found: list[Figures]) -> list[Figures]:
        """Give predicted runs that do not fit the figures that they would have on a large enough device."""
        short = [one.optimizer for one in found if one.status == "oom" and one.source == "predicted"]
        if not short:
            return found
        comparison = self._compare(budget, optimizers=short, capacity=_UNLIMITED_BYTES, again=True)
        needs = {one.optimizer: one for one in figures_of(budget.name, comparison)}
        kept = ("values", "phase", "holders", "notes")
        return [
            one.model_copy(update={name: getattr(needs[one.optimizer], name) for name in kept})
            if one.optimizer in needs
            else one
            for one in found
        ]


def measure_all(
    runner: BudgetRunner, budgets: Sequence[Budget], keep: Callable[[list[Figures]], None]
) -> list[Figures]:
    """Run all entries in order.

    Args:
        runner: Runs each entry.
        budgets: The entries.
        keep: A function that is called after every trial with all figures so far.

    Returns:
        The figures of all entries.
    """
    done: list[Figures] = []
    for budget in budgets:
        before = tuple(done)
        done += runner.measure(budget, lambda begun, before=before: keep([*before, *begun]))  # type: ignore[misc]
    return done


def broken_figures(budget: Budget, optimizer: str, error: MemprofError) -> Figures:
    """Return the figures of an entry that could not be run: they hold only the reason.

    Args:
        budget: The entry.
        optimizer: The optimizer that could not be run.
        error: The reason.
    """
    settings = budget.settings
    return Figures(
        entry=budget.name,
        optimizer=optimizer,
        source="measured" if is_here(settings.device) else "predicted",
        device=settings.device,
        status="failed",
        reason=str(error),
        mistake=error.exit_code == ExitCode.USAGE and not isinstance(error, ScriptFailedError),
        fingerprint=Fingerprint(torch="unknown"),
        setup=wanted_setup(budget),
    )


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Change the current folder, so that processes started in the block keep it."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
