"""Renders a comparison as a pandas data frame, as CSV, and as HTML for notebooks."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprof.documents.comparison import CATEGORIES, Comparison, FitAnswer, Run
from memprof.errors import UsageError
from memprof.report.content import sections
from memprof.report.content.columns import columns, main_table
from memprof.report.content.summary import summarize

if TYPE_CHECKING:
    import pandas as pd

_WORDS = {"model", "device", "source", "optimizer", "status", "reason", "implementation", "peak_phase", "strategy"}
_REALS = {"state_bytes_per_parameter", "state_relative_to_reference", "step_seconds", "last_loss"}


def to_frame(comparison: Comparison) -> pd.DataFrame:
    """Return a data frame with a row for each run. Figures are exact, sizes are in bytes, and absent figures are NA.

    The columns and their types do not depend on which figures are present, so that frames can be joined.
    """
    import pandas as pd

    keys = _identity(comparison, None) | _details(comparison, None)
    figures = [column.key for column in columns(comparison, drop=False)]
    names = list(dict.fromkeys([*_identity(comparison, None), *figures, *keys]))
    rows = [[cells[name] for name in names] for cells in (_row(comparison, run) for run in comparison.runs)]
    frame = pd.DataFrame(rows, columns=names)
    typed: pd.DataFrame = frame.astype({name: _dtype(name) for name in names})
    return typed


def to_csv(comparison: Comparison) -> str:
    """Return the data frame as CSV with a header line; absent figures are empty."""
    return to_frame(comparison).to_csv(index=False, lineterminator="\n")


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a data frame to a Parquet file.

    Args:
        frame: The data frame.
        path: The file to write.

    Raises:
        UsageError: No package that writes Parquet is installed, or the file cannot be written.
    """
    try:
        frame.to_parquet(path, index=False)
    except ImportError:
        raise UsageError("pandas needs pyarrow to write Parquet; pip install pyarrow, or choose csv") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose a writable folder") from None


def to_html(comparison: Comparison) -> str:
    """Return the main table and the summary as HTML for a notebook. All text from the user is escaped."""
    table = main_table(comparison)
    body = "".join(_html_row("td", row, table.right) for row in table.rows)
    summary = html.escape(" ".join(summarize(comparison)))
    caption = html.escape(sections.heading(comparison))
    return (
        f"<table><caption>{caption}</caption><thead>{_html_row('th', table.titles, table.right)}</thead>"
        f"<tbody>{body}</tbody></table><p>{summary}</p>"
    )


def _html_row(tag: str, cells: tuple[str, ...], right: tuple[bool, ...]) -> str:
    styled = (
        f'<{tag} style="text-align: {"right" if is_right else "left"}">{html.escape(cell)}</{tag}>'
        for cell, is_right in zip(cells, right, strict=True)
    )
    return f"<tr>{''.join(styled)}</tr>"


def _dtype(name: str) -> str:
    if name in _WORDS or name.endswith(("_knob", "_method")):
        return "string"
    return "Float64" if name in _REALS else "Int64"


def _row(comparison: Comparison, run: Run) -> dict[str, Any]:
    figures = {column.key: column.value(run) for column in columns(comparison, drop=False)}
    return {**figures, **_identity(comparison, run), **_details(comparison, run)}


def _identity(comparison: Comparison, run: Run | None) -> dict[str, Any]:
    return {
        "model": comparison.subject,
        "batch_size": comparison.workload and comparison.workload.batch_size,
        "device": run and run.device,
        "source": run and run.source,
        "optimizer": run and run.optimizer.spec,
        "status": run and run.status,
        "reason": run and run.reason,
    }


def _details(comparison: Comparison, run: Run | None) -> dict[str, Any]:
    held = run.breakdown.by_category if run is not None and run.breakdown is not None else {}
    parameters = run.parameters if run is not None else None
    fit = run.fit if run is not None else None
    return {
        "parameters": parameters and parameters.count,
        "trainable_parameters": parameters and parameters.trainable,
        "parameter_bytes": parameters and parameters.bytes,
        **{f"peak_{layer}_upper_bytes": _upper(run, layer) for layer in ("allocated", "reserved", "process")},
        **{f"at_peak_{category}_bytes": held.get(category) for category in CATEGORIES},
        "strategy": comparison.strategy,
        "world_size": comparison.world_size,
        "global_batch_size": _global_batch(comparison),
        "rank": run and run.rank,
        "state_of_all_ranks_bytes": run and run.job_state_bytes,
        "capacity_bytes": comparison.capacity.bytes,
        **_fit_details("largest_batch_size", fit.batch_size if fit is not None else None),
        **_fit_details("largest_model", fit.model if fit is not None else None),
    }


def _global_batch(comparison: Comparison) -> int | None:
    if comparison.workload is None or comparison.recipe is None:
        return None
    return comparison.recipe.global_batch(comparison.workload.batch_size)


def _upper(run: Run | None, layer: str) -> int | None:
    return getattr(run.peak, f"{layer}_upper_bytes") if run is not None and run.peak is not None else None


def _fit_details(name: str, answer: FitAnswer | None) -> dict[str, Any]:
    return {
        f"{name}_knob": answer and answer.knob,
        f"{name}_method": answer and answer.method,
        f"{name}_peak_bytes": answer and answer.peak_bytes,
        f"{name}_parameters": answer and answer.parameters,
    }
