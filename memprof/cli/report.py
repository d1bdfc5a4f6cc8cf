"""The command `memprof report`."""

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


class ReportFormat(str, Enum):
    """The formats of a report."""

    TEXT = "text"
    MARKDOWN = "markdown"
    HTML = "html"
    CSV = "csv"
    PARQUET = "parquet"
    SUMMARY = "summary"
    COMMENT = "comment"


_SUFFIXES = {
    ".md": ReportFormat.MARKDOWN,
    ".markdown": ReportFormat.MARKDOWN,
    ".html": ReportFormat.HTML,
    ".htm": ReportFormat.HTML,
    ".csv": ReportFormat.CSV,
    ".parquet": ReportFormat.PARQUET,
    ".txt": ReportFormat.TEXT,
}


def report(
    result: Annotated[
        str,
        typer.Argument(
            metavar="RESULT.json",
            help="A result that --export-json of `memprof compare`, `memprof fit` or `memprof advise` saved.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="The file of the report. Default, and with -: stdout."),
    ] = None,
    form: Annotated[
        ReportFormat | None,
        typer.Option(
            "--format",
            help="The format: text (a terminal's table), markdown (with SVG figures beside it), html (an interactive "
            "page), csv, parquet, summary (for $GITHUB_STEP_SUMMARY) or comment (for a pull request). "
            "Default: the format of FILE's suffix, else text.",
            metavar="NAME",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    debug: DebugOption = False,
) -> None:
    """Turn a saved result into a report: on the terminal, as Markdown with figures, or as an interactive page."""
    target = None if output in (None, "-") else Path(str(output))
    chosen = form or _format_of(target)
    if target is None and chosen is ReportFormat.PARQUET:
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
    elif chosen is ReportFormat.TEXT:
        from memprof.report.render.terminal import make_console

        _show(document, make_console())
    else:
        sys.stdout.write(writers[chosen](document))


def _format_of(target: Path | None) -> ReportFormat:
    if target is None:
        return ReportFormat.TEXT
    found = _SUFFIXES.get(target.suffix.lower())
    if found is None:
        known = ", ".join(dict.fromkeys(_SUFFIXES))
        raise UsageError(f"the suffix of {target} names no format; use one of {known}, or say --format")
    return found


def _paths(document: AnyReport, chosen: ReportFormat, target: Path) -> list[Path]:
    """Return the paths of the files that the report consists of."""
    from memprof.documents.comparison import Comparison
    from memprof.documents.fit import FitReport
    from memprof.report.write import MATRIX, report_paths

    if chosen is ReportFormat.MARKDOWN and isinstance(document, Comparison):
        return report_paths(target)
    drawn = chosen is ReportFormat.MARKDOWN and isinstance(document, FitReport)
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


def _write(document: AnyReport, chosen: ReportFormat, target: Path, result: Path) -> list[Path]:
    from memprof.documents.advice import AdviceReport
    from memprof.documents.comparison import Comparison
    from memprof.documents.fit import FitReport
    from memprof.files import write_text
    from memprof.report.write import write_fit_report, write_report

    if chosen is ReportFormat.MARKDOWN and isinstance(document, FitReport):
        return write_fit_report(document, target, result)
    if chosen is ReportFormat.MARKDOWN and isinstance(document, Comparison):
        return write_report(document, target, result)
    if chosen is ReportFormat.PARQUET and not isinstance(document, AdviceReport):
        from memprof.report.render.frame import write_parquet

        write_parquet(document.to_frame(), target)
    else:
        write_text(target, _writers(document)[chosen](document))
    return [target]


def _writers(document: AnyReport) -> dict[ReportFormat, Callable[[Any], str]]:
    """Return the formats of a document, each with the function that writes it as text.

    Parquet is not text, so its entry only says that the format exists; `_write` writes it.
    """
    from memprof.documents.advice import AdviceReport
    from memprof.documents.fit import FitReport
    from memprof.report.render import github as brief
    from memprof.report.render import html
    from memprof.report.render.terminal import captured

    words: dict[ReportFormat, Callable[[Any], str]] = {
        ReportFormat.TEXT: lambda document: captured(lambda console: _show(document, console)),
        ReportFormat.MARKDOWN: lambda document: str(document.to_markdown()),
    }
    if isinstance(document, AdviceReport):
        return words
    figures: dict[ReportFormat, Callable[[Any], str]] = {
        ReportFormat.CSV: lambda document: str(document.to_frame().to_csv(index=False, lineterminator="\n")),
        ReportFormat.PARQUET: lambda document: "",
    }
    if isinstance(document, FitReport):
        return {**words, **figures}
    pages = {
        ReportFormat.HTML: html.to_page,
        ReportFormat.SUMMARY: brief.to_step_summary,
        ReportFormat.COMMENT: brief.to_comment,
    }
    return {**words, **figures, **pages}
