"""`memprof report`."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memprof.cli.options import DebugOption
from memprof.cli.output import tell
from memprof.errors import UsageError

if TYPE_CHECKING:
    from memprof.results import Comparison


class Format(str, Enum):
    """What a report can be."""

    TEXT = "text"
    MARKDOWN = "markdown"
    HTML = "html"
    CSV = "csv"
    PARQUET = "parquet"
    SUMMARY = "summary"
    COMMENT = "comment"


_SUFFIXES = {
    ".md": Format.MARKDOWN,
    ".markdown": Format.MARKDOWN,
    ".html": Format.HTML,
    ".htm": Format.HTML,
    ".csv": Format.CSV,
    ".parquet": Format.PARQUET,
    ".txt": Format.TEXT,
}


def report(
    result: Annotated[str, typer.Argument(metavar="RESULT.json", help="Saved by `memprof compare --export-json`.")],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to; - or nothing is stdout."),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="text (a terminal's table), markdown (with SVG figures beside it), html (a page to explore), csv, "
            "parquet, summary (for $GITHUB_STEP_SUMMARY) or comment (for a pull request). "
            "Default: by the suffix of FILE, else text.",
            metavar="NAME",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    debug: DebugOption = False,
) -> None:
    """Turn a saved comparison into a report: on the terminal, as Markdown with figures, or as a page to explore."""
    from memprof.results import Comparison

    target = None if output in (None, "-") else Path(str(output))
    chosen = form or _format_of(target)
    if target is not None:
        _check(target, chosen, Path(result), force)
    comparison = Comparison.load(result)
    if target is None:
        _print(comparison, chosen)
    else:
        written = _write(comparison, chosen, target, Path(result))
        tell(f"wrote {', '.join(map(str, written))}")


def _format_of(target: Path | None) -> Format:
    if target is None:
        return Format.TEXT
    found = _SUFFIXES.get(target.suffix.lower())
    if found is None:
        known = ", ".join(dict.fromkeys(_SUFFIXES))
        raise UsageError(f"the suffix of {target} names no format; use one of {known}, or say --format")
    return found


def _check(target: Path, chosen: Format, result: Path, force: bool) -> None:
    from memprof.files import check_writable
    from memprof.report.files import report_paths

    for path in report_paths(target) if chosen is Format.MARKDOWN else [target]:
        if path.resolve() == result.resolve():
            raise UsageError(f"the report would overwrite {result}, which it is made of; give -o another name")
        check_writable(path, force)


def _print(comparison: Comparison, chosen: Format) -> None:
    if chosen is Format.TEXT:
        from memprof.report.terminal import make_console, render

        render(comparison, make_console())
    elif chosen is Format.PARQUET:
        raise UsageError("Parquet is no text; give -o FILE.parquet")
    else:
        sys.stdout.write(_text(comparison, chosen))


def _write(comparison: Comparison, chosen: Format, target: Path, result: Path) -> list[Path]:
    from memprof.files import write_text
    from memprof.report.files import write_report

    if chosen is Format.MARKDOWN:
        return write_report(comparison, target, result)
    if chosen is Format.PARQUET:
        from memprof.report.frame import write_parquet

        write_parquet(comparison, target)
    else:
        write_text(target, _text(comparison, chosen))
    return [target]


def _text(comparison: Comparison, chosen: Format) -> str:
    if chosen is Format.TEXT:
        from memprof.report.terminal import to_text

        return to_text(comparison)
    if chosen is Format.MARKDOWN:
        return comparison.to_markdown()
    if chosen is Format.HTML:
        from memprof.report.html import to_page

        return to_page(comparison)
    if chosen is Format.CSV:
        from memprof.report.frame import to_csv

        return to_csv(comparison)
    from memprof.report.brief import to_comment, to_step_summary

    return to_comment(comparison) if chosen is Format.COMMENT else to_step_summary(comparison)
