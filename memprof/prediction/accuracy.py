"""The accuracy of predictions for GPUs on real runs, read from `data/accuracy.json` (see `reports/accuracy.md`)."""

from __future__ import annotations

from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field


class Family(BaseModel):
    """The errors of one family of models. Errors are shares of the measured figures.

    Attributes:
        name: The name of the family.
        runs: The number of measured runs that were predicted.
        median_error: The median of the absolute errors.
        p95_error: The 95th percentile of the absolute errors.
        signed_median: The median of the signed errors. Above 0, predictions were too high.
        upper_held: The share of runs that stayed within the upper bound; None if that was not checked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    runs: int = Field(gt=0)
    median_error: float
    p95_error: float
    signed_median: float
    upper_held: float | None = None


class Accuracy(BaseModel):
    """The figures of an accuracy report, with the source of the runs and the command that computes them again."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: str = Field(alias="schema", pattern=r"^memprof\.accuracy/1$")
    source: str
    command: str
    date: str
    torch: str
    families: list[Family]


def accuracy() -> Accuracy | None:
    """Return the figures that are shipped with this version; None if it has none."""
    file = files("memprof.prediction") / "data" / "accuracy.json"
    return Accuracy.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def standing() -> str:
    """Return how far predictions for a GPU can be trusted, as one sentence."""
    found = accuracy()
    if found is None:
        return "Predictions for a GPU have not yet been checked against measurements on one."
    return f"Predictions for a GPU against measurements: {in_words(found)}."


def in_words(found: Accuracy) -> str:
    """Return the figures in words, as a part of a sentence.

    Args:
        found: The figures.
    """
    families = "; ".join(_family(one) for one in found.families)
    return f"{families} ({found.source}, torch {found.torch}, {found.date})"


def _family(one: Family) -> str:
    errors = f"median error {100 * one.median_error:.2f} %, 95 % within {100 * one.p95_error:.1f} %"
    held = f", within the upper bound in {100 * one.upper_held:.0f} %" if one.upper_held is not None else ""
    return f"{one.runs} runs of {one.name}: {errors}{held}"
