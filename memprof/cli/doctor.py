"""The command `memprof doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from memprof.cli.options import DebugOption, JsonOption
from memprof.cli.output import print_json


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Use exit code 1 if a check fails.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what this machine can measure and what it cannot."""
    from memprof.doctor.machine import examine

    checks = examine()
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        from memprof.report.render.terminal import make_console, render_checks

        render_checks([(check.level, check.name, check.finding) for check in checks], make_console())
    if strict and any(check.level == "fail" for check in checks):
        raise typer.Exit(1)
