"""Makes the help fast: it leaves out Rich's Markdown and tracebacks, which Typer's help imports but does not use here.

They import a Markdown parser and Pygments, which took a third of the time of `memprof --help`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

UNUSED = (("rich.markdown", "Markdown"), ("rich.traceback", "Traceback"))


class _LazyClass(type):
    """The type of a class that stands in for another one, and imports that class when it is first used."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return cls._real()(*arguments, **options)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._real(), name)

    def _real(cls) -> Any:
        return getattr(import_module(cls.__module__), cls.__name__)


def prepare_help() -> None:
    """Import Typer's help without the modules that it does not use; afterwards they can be imported normally."""
    stood_in = [(home, name) for home, name in UNUSED if home not in sys.modules]
    for home, name in stood_in:
        module = ModuleType(home)
        setattr(module, name, _LazyClass(name, (), {"__module__": home}))
        sys.modules[home] = module
    try:
        import_module("typer.rich_utils")
    finally:
        for home, _ in stood_in:
            del sys.modules[home]
