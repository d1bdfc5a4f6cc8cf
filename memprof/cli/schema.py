"""The command `memprof schema`."""

from __future__ import annotations

from enum import Enum
from importlib import import_module
from typing import Annotated

import typer

from memprof.cli.options import DebugOption
from memprof.cli.output import print_json


class DocumentName(str, Enum):
    """The documents that memprof writes."""

    COMPARISON = "comparison"
    FIT = "fit"
    ADVICE = "advice"
    GATE = "gate"
    BASELINE = "baseline"
    DIFFERENCE = "difference"


_HOMES = {
    DocumentName.COMPARISON: ("memprof.documents.comparison", "Comparison"),
    DocumentName.FIT: ("memprof.documents.fit", "FitReport"),
    DocumentName.ADVICE: ("memprof.documents.advice", "AdviceReport"),
    DocumentName.GATE: ("memprof.gate.report", "Report"),
    DocumentName.BASELINE: ("memprof.gate.baseline", "Baseline"),
    DocumentName.DIFFERENCE: ("memprof.gate.diff", "Difference"),
}


def schema(
    document: Annotated[
        DocumentName,
        typer.Argument(
            metavar="[DOCUMENT]",
            help="The document: comparison (the default), fit, advice, gate, baseline or difference.",
        ),
    ] = DocumentName.COMPARISON,
    debug: DebugOption = False,
) -> None:
    """Print the JSON Schema of a document that memprof writes."""
    home, name = _HOMES[document]
    model = getattr(import_module(home), name)
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(by_alias=True)})
