"""The gate's report: figures, verdicts and what to do, one JSON document that every format is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from memprof.documents.base import Saved
from memprof.documents.confidence import Document
from memprof.errors import ExitCode
from memprof.gate.baseline import Change
from memprof.gate.entry_figures import Figures
from memprof.gate.verdict import Verdict, counts

SCHEMA: Literal["memprof.gate/1"] = "memprof.gate/1"


class Place(Document):
    """Where an entry stands in the configuration, for annotations."""

    file: str
    line: int | None = None


class Report(Saved):
    """What a gate found.

    Attributes:
        memprof: the version that made it.
        config: the configuration's name.
        baseline: the baseline's name; null where there is none.
        places: where the entries stand.
        figures: of every run.
        verdicts: on every limit.
        changes: what `--update-baseline` did.
        updated: the baseline was to be updated.
        accept: the command that accepts these figures.
        exit_code: 0 to 5, as the design has them; 130 for a report that was cut short.
    """

    schema_: Literal["memprof.gate/1"] = Field(default=SCHEMA, alias="schema")
    memprof: str
    config: str
    baseline: str | None = None
    places: dict[str, Place] = Field(default_factory=dict)
    figures: list[Figures] = Field(default_factory=list)
    verdicts: list[Verdict] = Field(default_factory=list)
    changes: list[Change] = Field(default_factory=list)
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
        """Whether a verdict would be another one against a baseline of these figures: no ceiling, no broken run."""
        return any(
            verdict.status in ("improved", "missing", "other-environment") or verdict.base is not None
            for verdict in (*self.failures, *self.warnings)
        )


def exit_code(verdicts: Sequence[Verdict], figures: Iterable[Figures]) -> ExitCode:
    """Return what the verdicts come to: a mistake (2) before a failed trial (3) before an exceeded budget (1).

    A failed run of an entry at level warn warns as well.
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
    """Return one sentence: how many checks failed, warned and passed."""
    number = counts(report.verdicts)
    checks = len(report.verdicts)
    words = {"error": "failed", "warning": "warned", "note": "new"}
    parts = [f"{number[weight]} {word}" for weight, word in words.items() if number[weight]]  # type: ignore[index]
    parts.append(f"{number['ok']} passed")
    return f"{checks} {'check' if checks == 1 else 'checks'}: {', '.join(parts)}"
