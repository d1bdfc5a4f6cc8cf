"""Reads any saved result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from memprof.documents.advice import AdviceReport
from memprof.documents.comparison import Comparison
from memprof.documents.fit import FitReport

AnyReport: TypeAlias = "Comparison | FitReport | AdviceReport"


def load_any(path: str | Path) -> AnyReport:
    """Read what `memprof compare`, `memprof fit` or `memprof advise` saved.

    Raises:
        UsageError: the file is missing, cut off, or of a schema that this version does not know.
    """
    try:
        schema = str(json.loads(Path(path).read_text(encoding="utf-8")).get("schema"))
    except (OSError, ValueError, AttributeError):
        schema = ""  # the comparison's reader says what is wrong
    kinds: dict[str, type[AnyReport]] = {"memprof.fit": FitReport, "memprof.advice": AdviceReport}
    return kinds.get(schema.partition("/")[0], Comparison).load(path)
