"""The command `memprof models`."""

from __future__ import annotations

from memprof.cli.options import DebugOption, JsonOption
from memprof.cli.output import print_json, print_table, tell


def models(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the built-in models with their knobs and defaults."""
    from memprof.workloads.builtin import BUILTINS

    if as_json:
        facts = ("name", "description", "parameters", "scale")
        print_json([{**{fact: getattr(m, fact) for fact in facts}, "knobs": dict(m.knobs)} for m in BUILTINS.values()])
        return
    from memprof.units import format_count

    rows = [
        (model.name, format_count(model.parameters), model.scale, _knobs(model.knobs), model.description)
        for model in BUILTINS.values()
    ]
    print_table(["model", "parameters", "scale", "knobs (--set)", "description"], rows, numbers=["parameters"])
    tell("Your own: path/to/file.py:attr, package.module:attr, or hf:PATH_OR_ID.")


def _knobs(knobs: object) -> str:
    assert hasattr(knobs, "items")
    return " ".join(f"{name}={value}" for name, value in knobs.items())
