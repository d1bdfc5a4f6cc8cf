"""The columns of a comparison, defined once for the terminal, Markdown, notebooks, data frames and CSV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from memprof.documents.comparison import Comparison, FitAnswer, Run
from memprof.documents.vary import BATCH
from memprof.report.text_table import MINOR, Table
from memprof.units import ABSENT, format_count, format_loss, format_seconds, format_share, format_size

Value = str | int | float | None
_STATUS = {"ok": "ok", "oom": "out of memory", "failed": "failed"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column, which shows one figure of each run.

    Attributes:
        key: The name of the column in CSV and data frames.
        title: The heading of the column in printed tables.
        value: Returns the exact figure of a run; None if it is absent.
        text: Returns the figure of a run as it is printed.
        rank: The priority of the column on a narrow terminal; the lowest rank gets a place first.
        right: Whether the column is aligned to the right, as numbers are.
    """

    key: str
    title: str
    value: Callable[[Run], Value]
    text: Callable[[Run], str]
    rank: int
    right: bool = True


def columns(comparison: Comparison, *, drop: bool = True) -> list[Column]:
    """Return the columns of a comparison in their order.

    Args:
        comparison: The comparison.
        drop: Whether to leave out the columns that have no figure to show.
    """
    everything = [*_run_columns(), *_state_columns(comparison), *_peak_columns(), *_step_columns()]
    everything += _fit_columns(comparison)
    if not drop:
        return everything
    finished = all(run.status == "ok" for run in comparison.runs)
    shown = [column for column in everything if not (finished and column.key == "status")]
    return [column for column in shown if any(column.text(run) != ABSENT for run in comparison.runs)]


def main_table(comparison: Comparison) -> Table:
    """Return the main table of a comparison, with a row for each optimizer."""
    shown = columns(comparison)
    return Table(
        titles=tuple(column.title for column in shown),
        rows=tuple(tuple(column.text(run) for column in shown) for run in comparison.runs),
        ranks=tuple(column.rank for column in shown),
        right=tuple(column.right for column in shown),
    )


def reference_run(comparison: Comparison) -> Run | None:
    """Return the run that the others are compared with.

    Returns:
        The run of the comparison's reference, or else the run with the largest state; None if no finished run keeps any
        state.
    """
    finished = [run for run in comparison.runs if run.status == "ok" and run.state is not None and run.state.bytes]
    named = (run for run in finished if run.optimizer.spec == comparison.reference)
    return next(named, None) or max(finished, key=_state_bytes, default=None)


def step_seconds(run: Run) -> float | None:
    """Return the median time of the counted steps in seconds; None if no step was timed."""
    return median(run.steps.seconds) if run.steps is not None and run.steps.seconds else None


def is_open(answer: FitAnswer) -> bool:
    """Return whether the largest value of the range still fits, so that the true answer may be larger."""
    return bool(answer.value) and answer.next_value is None


def largest(knob: str) -> str:
    """Return the name of a largest value: `largest batch`, `largest n_layers`."""
    return "largest batch" if knob == BATCH else f"largest {knob}"


def varied_knob(comparison: Comparison) -> str:
    """Return what the largest batch is called: `batch_size` of a workload, the placeholder of a script."""
    fits = (run.fit.batch_size for run in comparison.runs if run.fit is not None)
    return next((answer.knob for answer in fits if answer is not None), BATCH)


def fit_text(answer: FitAnswer | None) -> str:
    """Return the answer of a fit as text.

    `~61` is an extrapolated answer. `none` means that not even the smallest value fits, and `any` that every value
    does. `65536+` means that the largest value of the range fits, so that the true answer may be larger.
    """
    if answer is None:
        return ABSENT
    if answer.value is None:
        return "any"
    if answer.value == 0:
        return "none"
    mark = "~" if answer.method == "extrapolated" else ""
    size = f" ({format_count(answer.parameters)})" if answer.parameters is not None else ""
    more = "+" if is_open(answer) else ""
    return f"{mark}{answer.value}{more}{size}"


def _state_bytes(run: Run) -> int:
    return run.state.bytes if run.state is not None else 0


def _size_column(key: str, title: str, rank: int, value: Callable[[Run], int | None]) -> Column:
    return Column(key=key, title=title, rank=rank, value=value, text=lambda run: format_size(value(run)))


def _word_column(key: str, title: str, rank: int, value: Callable[[Run], str | None]) -> Column:
    text = lambda run: value(run) or ABSENT  # noqa: E731
    return Column(key=key, title=title, rank=rank, value=value, text=text, right=False)


def _run_columns() -> list[Column]:
    return [
        _word_column("optimizer", "optimizer", 0, lambda run: run.optimizer.spec),
        _word_column("status", "status", 1, lambda run: _STATUS[run.status]),
        _word_column("implementation", "ran as", 12, lambda run: run.optimizer.implementation),
    ]


def _state_columns(comparison: Comparison) -> list[Column]:
    reference = reference_run(comparison)
    base = _state_bytes(reference) if reference is not None and len(comparison.runs) > 1 else None

    def relative(run: Run) -> float | None:
        return run.state.bytes / base if run.state is not None and base else None

    def per_parameter(run: Run) -> float | None:
        return run.state.bytes_per_parameter if run.state is not None else None

    def per_parameter_text(run: Run) -> str:
        value = per_parameter(run)
        return ABSENT if value is None else f"{value:.2f}"

    return [
        _size_column("state_bytes", "state", 2, lambda run: run.state.bytes if run.state else None),
        Column(
            key="state_bytes_per_parameter",
            title="B/param",
            rank=9,
            value=per_parameter,
            text=per_parameter_text,
        ),
        Column(
            key="state_relative_to_reference",
            title=f"vs {reference.optimizer.name}" if reference is not None else "vs reference",
            rank=5,
            value=relative,
            text=lambda run: format_share(relative(run)),
        ),
    ]


def _peak_columns() -> list[Column]:
    return [
        _peak_column("peak_tensor_bytes", "tensors", MINOR, "tensor_bytes"),
        _peak_column("peak_allocated_bytes", "peak", 3, "allocated_bytes"),
        _peak_column("peak_reserved_bytes", "reserved", 11, "reserved_bytes"),
        _peak_column("peak_process_bytes", "process", 10, "process_bytes"),
        _word_column("peak_phase", "set by", 4, lambda run: run.peak.phase if run.peak is not None else None),
    ]


def _peak_column(key: str, title: str, rank: int, field: str) -> Column:
    def size(run: Run) -> int | None:
        return getattr(run.peak, field) if run.peak is not None else None

    def upper(run: Run) -> int | None:
        return getattr(run.peak, field.replace("_bytes", "_upper_bytes"), None)

    text = lambda run: bounded_size(size(run), upper(run))  # noqa: E731
    return Column(key=key, title=title, rank=rank, value=size, text=text)


def bounded_size(size: int | None, upper: int | None) -> str:
    """Return a size as text, with its upper bound if that is printed differently: `21.30 GiB (<= 22.00)`.

    Args:
        size: The size, in bytes; None if it is absent.
        upper: The upper bound, in bytes; None if there is none.
    """
    point, bound = format_size(size), format_size(upper)
    if size is None or upper is None or point == bound:
        return point
    number, _, unit = bound.partition(" ")
    return f"{point} (<= {number if point.endswith(f' {unit}') else bound})"


def _step_columns() -> list[Column]:
    def last_loss(run: Run) -> float | None:
        return run.steps.losses[-1] if run.steps is not None and run.steps.losses else None

    return [
        Column(
            key="step_seconds",
            title="step time",
            rank=8,
            value=step_seconds,
            text=lambda run: format_seconds(step_seconds(run)),
        ),
        Column(
            key="last_loss",
            title="last loss",
            rank=13,
            value=last_loss,
            text=lambda run: format_loss(last_loss(run)),
        ),
    ]


def _fit_columns(comparison: Comparison) -> list[Column]:
    def batch(run: Run) -> FitAnswer | None:
        return run.fit.batch_size if run.fit is not None else None

    def model(run: Run) -> FitAnswer | None:
        return run.fit.model if run.fit is not None else None

    knob = next((answer.knob for answer in map(model, comparison.runs) if answer), _scale(comparison))
    return [
        _fit_column("largest_batch_size", largest(varied_knob(comparison)), 6, batch),
        _fit_column("largest_model", f"largest {knob}", 7, model),
    ]


def _scale(comparison: Comparison) -> str | None:
    return comparison.workload.scale if comparison.workload is not None else None


def _fit_column(key: str, title: str, rank: int, answer: Callable[[Run], FitAnswer | None]) -> Column:
    def value(run: Run) -> int | None:
        found = answer(run)
        return found.value if found is not None else None

    return Column(key=key, title=title, rank=rank, value=value, text=lambda run: fit_text(answer(run)))
