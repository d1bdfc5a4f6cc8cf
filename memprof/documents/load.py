"""Reads a saved document of any kind that `memprof report` renders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from memprof.documents.advice import AdviceReport
from memprof.documents.comparison import Comparison
from memprof.documents.fit import FitReport

AnyReport: TypeAlias = "Comparison | FitReport | AdviceReport"


def load_any(path: str | Path) -> AnyReport:
    """Read a document that `memprof compare`, `memprof fit` or `memprof advise` saved.

    Args:
        path: The file to read.

    Raises:
        UsageError: The file is missing, is cut off, or has a schema that this version does not read.
    """
    try:
        schema = str(json.loads(Path(path).read_text(encoding="utf-8")).get("schema"))
    except (OSError, ValueError, AttributeError):
        schema = ""  # let `Comparison.load` fail on the file: its message says what is wrong
    kinds: dict[str, type[AnyReport]] = {"memprof.fit": FitReport, "memprof.advice": AdviceReport}
    return kinds.get(schema.partition("/")[0], Comparison).load(path)
