"""How much memory does training my model take with each optimizer, and does it fit?

`import memprof` is instant: torch, pandas and pydantic are imported when something is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memprof.api import advise, compare, fit, predict
    from memprof.api_run import run
    from memprof.documents.comparison import Comparison
    from memprof.documents.recipe import Recipe
    from memprof.errors import MemprofError, UsageError
    from memprof.workloads.workload import Workload

_HOMES = {
    "Comparison": "memprof.documents.comparison",
    "MemprofError": "memprof.errors",
    "Recipe": "memprof.documents.recipe",
    "UsageError": "memprof.errors",
    "Workload": "memprof.workloads.workload",
    "advise": "memprof.api",
    "compare": "memprof.api",
    "fit": "memprof.api",
    "predict": "memprof.api",
    "run": "memprof.api_run",
}

__all__ = [
    "Comparison",
    "MemprofError",
    "Recipe",
    "UsageError",
    "Workload",
    "advise",
    "compare",
    "fit",
    "predict",
    "run",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'memprof' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
