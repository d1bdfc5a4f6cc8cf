"""Writes reports to files: the Markdown, and its figures next to it."""

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
    """Return the path of a figure of a report: `gpt2_peak.svg` next to `gpt2.md`.

    Args:
        report: The Markdown file.
        name: The name of the figure.
    """
    return report.with_name(f"{report.stem}_{name}.svg")


def report_paths(report: Path, names: Iterable[str] = NAMES) -> list[Path]:
    """Return the files that a Markdown report may consist of.

    Args:
        report: The Markdown file.
        names: The names of the figures that the report may have.

    Raises:
        UsageError: The path of the report has no file name.
    """
    if not report.name:
        raise UsageError(f"cannot write {report}: it is a folder; name a file in it")
    return [report, *(figure_path(report, name) for name in names)]


def write_report(comparison: Comparison, report: Path, document: Path | None) -> list[Path]:
    """Write the Markdown report of a comparison with its figures, and return the files that were written.

    Args:
        comparison: The comparison to report.
        report: The Markdown file. The figures are written next to it.
        document: The file with the saved comparison, which the report links to.

    Raises:
        UsageError: A file cannot be written.
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
    """Write the Markdown report of `memprof fit` with a figure of its matrix, and return the files that were written.

    Args:
        fit: The document to report.
        report: The Markdown file. The figure is written next to it.
        document: The file with the saved document, which the report links to.

    Raises:
        UsageError: A file cannot be written.
    """
    figure = figure_path(report, MATRIX)
    text, svg = draw_matrix(fit)
    write_text(figure, svg)
    body = fit.to_markdown(image(figure.name, text))
    link = Path(os.path.relpath(document, report.parent)).as_posix()
    write_text(report, f"{body}\n{link_to(link)}\n")
    return [report, figure]
