"""The report of the gate: one JSON document with figures, verdicts and advice, from which every format is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from memprof.documents.base import Saved
from memprof.documents.confidence import Document
from memprof.errors import ExitCode
from memprof.gate.baseline import BaselineChange
from memprof.gate.entry_figures import Figures
from memprof.gate.verdict import Verdict, counts

SCHEMA: Literal["memprof.gate/1"] = "memprof.gate/1"


class ConfigLocation(Document):
    """Where an entry is in the configuration, for annotations.

    Attributes:
        file: The path of the configuration file, from the root of the repository if that is known.
        line: The line where the entry begins; null if it is not known.
    """

    file: str
    line: int | None = None


class Report(Saved):
    """The result of a gate.

    Attributes:
        memprof: The version of memprof that made the report.
        config: The name of the configuration file.
        baseline: The name of the baseline file; null if there is none.
        places: The location of each entry in the configuration.
        figures: The figures of every run.
        verdicts: The verdict on every limit.
        changes: The changes that `--update-baseline` made.
        updated: Whether `--update-baseline` was given.
        accept: The command that accepts these figures.
        exit_code: The exit code, 0 to 5; 130 for a report that was interrupted.
    """

    schema_: Literal["memprof.gate/1"] = Field(default=SCHEMA, alias="schema")
    memprof: str
    config: str
    baseline: str | None = None
    places: dict[str, ConfigLocation] = Field(default_factory=dict)
    figures: list[Figures] = Field(default_factory=list)
    verdicts: list[Verdict] = Field(default_factory=list)
    changes: list[BaselineChange] = Field(default_factory=list)
    updated: bool = False
    accept: str
    exit_code: int

    @property
    def failures(self) -> list[Verdict]:
        """The verdicts that fail the build."""
        return [verdict for verdict in self.verdicts if verdict.weight == "error"]

    @property
    def warnings(self) -> list[Verdict]:
        """The verdicts that warn."""
        return [verdict for verdict in self.verdicts if verdict.weight == "warning"]

    @property
    def acceptable(self) -> bool:
        """Whether accepting these figures as the baseline would change a verdict.

        It would not if the only problems are exceeded ceilings and failed runs.
        """
        return any(
            verdict.status in ("improved", "missing", "other-environment") or verdict.base is not None
            for verdict in (*self.failures, *self.warnings)
        )


def exit_code(verdicts: Sequence[Verdict], figures: Iterable[Figures]) -> ExitCode:
    """Return the exit code for the verdicts.

    A user's mistake (2) takes precedence over a failed trial (3), and that over an exceeded budget (1). If the level of
    an entry is `warn`, its failed runs only warn as well.

    Args:
        verdicts: All verdicts.
        figures: The figures that they are about.

    Returns:
        The exit code.
    """
    failed = {(one.entry, one.optimizer): one.mistake for one in figures if one.status == "failed"}
    errors = [verdict for verdict in verdicts if verdict.weight == "error"]
    broken = [failed[verdict.entry, verdict.optimizer] for verdict in errors if verdict.status == "failed"]
    if any(broken):
        return ExitCode.USAGE
    if broken:
        return ExitCode.FAILED
    return ExitCode.BUDGET_EXCEEDED if errors else ExitCode.OK


def summary(report: Report) -> str:
    """Return one sentence that says how many checks failed, warned and passed."""
    number = counts(report.verdicts)
    checks = len(report.verdicts)
    words = {"error": "failed", "warning": "warned", "note": "new"}
    parts = [f"{number[weight]} {word}" for weight, word in words.items() if number[weight]]  # type: ignore[index]
    parts.append(f"{number['ok']} passed")
    return f"{checks} {'check' if checks == 1 else 'checks'}: {', '.join(parts)}"
