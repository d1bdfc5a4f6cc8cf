"""`memprof report`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprof.cli.options import DebugOption
from memprof.cli.output import tell
from memprof.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from memprof.documents.load import AnyReport


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
    result: Annotated[
        str,
        typer.Argument(
            metavar="RESULT.json",
            help="Saved by --export-json of `memprof compare`, `memprof fit` or `memprof advise`.",
        ),
    ],
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
    """Turn a saved result into a report: on the terminal, as Markdown with figures, or as a page to explore."""
    target = None if output in (None, "-") else Path(str(output))
    chosen = form or _format_of(target)
    if target is None and chosen is Format.PARQUET:
        raise UsageError("Parquet is no text; give -o FILE.parquet")
    from memprof.documents.load import load_any

    document = load_any(result)
    writers = _writers(document)
    if chosen not in writers:
        known = ", ".join(form.value for form in writers)
        raise UsageError(f"{result} can be made into {known}; {chosen.value} is for others")
    if target is not None:
        _check(_paths(document, chosen, target), Path(result), force)
        written = _write(document, chosen, target, Path(result))
        tell(f"wrote {', '.join(map(str, written))}")
    elif chosen is Format.TEXT:
        from memprof.report.render.terminal import make_console

        _show(document, make_console())
    else:
        sys.stdout.write(writers[chosen](document))


def _format_of(target: Path | None) -> Format:
    if target is None:
        return Format.TEXT
    found = _SUFFIXES.get(target.suffix.lower())
    if found is None:
        known = ", ".join(dict.fromkeys(_SUFFIXES))
        raise UsageError(f"the suffix of {target} names no format; use one of {known}, or say --format")
    return found


def _paths(document: AnyReport, chosen: Format, target: Path) -> list[Path]:
    """Return the files that would be written."""
    from memprof.documents.comparison import Comparison
    from memprof.documents.fit import FitReport
    from memprof.report.write import MATRIX, report_paths

    if chosen is Format.MARKDOWN and isinstance(document, Comparison):
        return report_paths(target)
    drawn = chosen is Format.MARKDOWN and isinstance(document, FitReport)
    return report_paths(target, [MATRIX] if drawn else [])


def _check(paths: list[Path], result: Path, force: bool) -> None:
    from memprof.files import check_writable

    for path in paths:
        if path.resolve() == result.resolve():
            raise UsageError(f"the report would overwrite {result}, which it is made of; give -o another name")
        check_writable(path, force)


def _show(document: AnyReport, console: Console) -> None:
    from memprof.documents.advice import AdviceReport
    from memprof.documents.fit import FitReport
    from memprof.report.content import advice
    from memprof.report.content import fit as fits
    from memprof.report.render import terminal

    if isinstance(document, FitReport):
        fits.show(document, console)
    elif isinstance(document, AdviceReport):
        advice.show(document, console)
    else:
        terminal.render(document, console)


def _write(document: AnyReport, chosen: Format, target: Path, result: Path) -> list[Path]:
    from memprof.documents.advice import AdviceReport
    from memprof.documents.comparison import Comparison
    from memprof.documents.fit import FitReport
    from memprof.files import write_text
    from memprof.report.write import write_fit_report, write_report

    if chosen is Format.MARKDOWN and isinstance(document, FitReport):
        return write_fit_report(document, target, result)
    if chosen is Format.MARKDOWN and isinstance(document, Comparison):
        return write_report(document, target, result)
    if chosen is Format.PARQUET and not isinstance(document, AdviceReport):
        from memprof.report.render.frame import write_parquet

        write_parquet(document.to_frame(), target)
    else:
        write_text(target, _writers(document)[chosen](document))
    return [target]


def _writers(document: AnyReport) -> dict[Format, Callable[[Any], str]]:
    """Return what a document can be made into, and how; Parquet is not text and has a way of its own."""
    from memprof.documents.advice import AdviceReport
    from memprof.documents.fit import FitReport
    from memprof.report.render import github as brief
    from memprof.report.render import html
    from memprof.report.render.terminal import captured

    words: dict[Format, Callable[[Any], str]] = {
        Format.TEXT: lambda document: captured(lambda console: _show(document, console)),
        Format.MARKDOWN: lambda document: str(document.to_markdown()),
    }
    if isinstance(document, AdviceReport):
        return words
    figures: dict[Format, Callable[[Any], str]] = {
        Format.CSV: lambda document: str(document.to_frame().to_csv(index=False, lineterminator="\n")),
        Format.PARQUET: lambda document: "",
    }
    if isinstance(document, FitReport):
        return {**words, **figures}
    pages = {Format.HTML: html.to_page, Format.SUMMARY: brief.to_step_summary, Format.COMMENT: brief.to_comment}
    return {**words, **figures, **pages}
