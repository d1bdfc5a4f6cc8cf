"""How much memory does training my model take with each optimizer, and does it fit?

`import memprof` is instant: torch, pandas and pydantic are imported when something is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memprof.advice.api import advise
    from memprof.api import compare, predict
    from memprof.errors import MemprofError, UsageError
    from memprof.fitting.api import fit
    from memprof.results import Comparison
    from memprof.training.recipe import Recipe
    from memprof.workloads.workload import Workload

_HOMES = {
    "Comparison": "memprof.results",
    "MemprofError": "memprof.errors",
    "Recipe": "memprof.training.recipe",
    "UsageError": "memprof.errors",
    "Workload": "memprof.workloads.workload",
    "advise": "memprof.advice.api",
    "compare": "memprof.api",
    "fit": "memprof.fitting.api",
    "predict": "memprof.api",
}

__all__ = ["Comparison", "MemprofError", "Recipe", "UsageError", "Workload", "advise", "compare", "fit", "predict"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'memprof' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
