"""A report as files: the Markdown with its figures beside it, or one file of another format."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from memprof.documents.comparison import Comparison
from memprof.documents.fit import FitReport
from memprof.errors import UsageError
from memprof.files import write_text
from memprof.report.figures import NAMES, draw_figures
from memprof.report.figures.matrix import draw_matrix
from memprof.report.render.markdown import image, link_to, to_markdown

MATRIX = "matrix"


def figure_path(report: Path, name: str) -> Path:
    """Return the file of a report's figure: `gpt2_peak.svg` beside `gpt2.md`."""
    return report.with_name(f"{report.stem}_{name}.svg")


def report_paths(report: Path, names: Iterable[str] = NAMES) -> list[Path]:
    """Return the files that a Markdown report with figures of these names may consist of.

    Raises:
        UsageError: it has no name of its own.
    """
    if not report.name:
        raise UsageError(f"cannot write {report}: it is a folder; name a file in it")
    return [report, *(figure_path(report, name) for name in names)]


def write_report(comparison: Comparison, report: Path, document: Path | None) -> list[Path]:
    """Write the Markdown and its figures, and return the files written.

    Args:
        comparison: what to report.
        report: the Markdown file; the figures go beside it.
        document: the file that the comparison is saved in, to link to.

    Raises:
        UsageError: a file cannot be written.
    """
    written, shown = [], {}
    for figure in draw_figures(comparison):
        path = figure_path(report, figure.name)
        write_text(path, figure.svg)
        written.append(path)
        shown[figure.name] = image(path.name, figure.text)
    link = Path(os.path.relpath(document, report.parent)).as_posix() if document is not None else None
    write_text(report, to_markdown(comparison, shown, link))
    return [report, *written]


def write_fit_report(fit: FitReport, report: Path, document: Path) -> list[Path]:
    """Write the Markdown of `memprof fit`, with its matrix as a figure, and return the files written.

    Args:
        fit: what to report.
        report: the Markdown file; the figure goes beside it.
        document: the file that it is saved in, to link to.

    Raises:
        UsageError: a file cannot be written.
    """
    figure = figure_path(report, MATRIX)
    text, svg = draw_matrix(fit)
    write_text(figure, svg)
    body = fit.to_markdown(image(figure.name, text))
    link = Path(os.path.relpath(document, report.parent)).as_posix()
    write_text(report, f"{body}\n{link_to(link)}\n")
    return [report, figure]
