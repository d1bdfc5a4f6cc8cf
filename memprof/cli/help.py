"""Prepares the help: without Rich's Markdown and tracebacks, which Typer's help imports and this one never shows.

They bring a Markdown parser and Pygments along, which took a third of the time of `memprof --help`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

UNUSED = (("rich.markdown", "Markdown"), ("rich.traceback", "Traceback"))


class _Later(type):
    """The type of a class that stands for another one, and imports that when it is used."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return cls._real()(*arguments, **options)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._real(), name)

    def _real(cls) -> Any:
        return getattr(import_module(cls.__module__), cls.__name__)


def prepare_help() -> None:
    """Import Typer's help without the modules that it does not use here; afterwards they can be imported as ever."""
    stood_in = [(home, name) for home, name in UNUSED if home not in sys.modules]
    for home, name in stood_in:
        module = ModuleType(home)
        setattr(module, name, _Later(name, (), {"__module__": home}))
        sys.modules[home] = module
    try:
        import_module("typer.rich_utils")
    finally:
        for home, _ in stood_in:
            del sys.modules[home]
