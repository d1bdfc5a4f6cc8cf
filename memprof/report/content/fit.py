"""The report of `memprof fit` as tables, sentences, Markdown and a data frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memprof.documents.comparison import FitAnswer
from memprof.documents.fit import FitCell, FitDevice, FitReport
from memprof.documents.vary import BATCH
from memprof.documents.wording import phase_words
from memprof.report.content.columns import fit_text
from memprof.report.render.parts import Part, render_parts
from memprof.report.text_table import Table, number_table
from memprof.units import ABSENT, format_count, format_size

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

_LENGTHS = ("seq_len", "image_size")
_TITLES = (
    *("optimizer", "largest", "accumulate", "global batch", "parameters"),
    *("peak", "head-room", "bound by", "next", "needs", "how"),
)
_OPTIONAL = ("accumulate", "global batch", "parameters")


def heading(report: FitReport) -> str:
    """Return one line that names the knob, the workload and the recipe."""
    workload, knob = report.workload, report.vary.knob
    knobs = {"batch_size": workload.batch_size, **workload.knobs}
    fixed = ", ".join(f"{name}={value}" for name, value in knobs.items() if name != knob)
    options = report.recipe.model_dump(exclude_defaults=True, exclude={"precision", "warmup", "steps", "seed"})
    changed = ", ".join(f"{name}={value}" for name, value in options.items())
    parts = [f"largest {knob} of {workload.name}", fixed, report.recipe.precision, changed]
    return " · ".join(part for part in parts if part)


def matrix(report: FitReport) -> Table:
    """Return a table of the largest values with a row for each optimizer and a column for each device."""
    names = [device.name for device in report.devices]
    optimizers = dict.fromkeys(cell.optimizer for cell in report.cells)
    rows = ((one, [_largest(report.cell(one, name)) for name in names]) for one in optimizers)
    return number_table("optimizer", names, rows)


def details(report: FitReport) -> Table:
    """Return a table with a row for each cell: the value, its peak, the phase that limits it, and the next value."""
    several = len(report.devices) > 1
    rows = tuple(_row(report, cell, several) for cell in report.cells)
    kept = [i for i, title in enumerate(_TITLES) if title not in _OPTIONAL or any(row[i] != ABSENT for row in rows)]
    words = ("optimizer", "bound by", "how")
    table = Table(
        titles=("optimizer on device" if several else "optimizer", *_TITLES[1:]),
        rows=rows,
        ranks=tuple(range(len(_TITLES))),
        right=tuple(title not in words for title in _TITLES),
    )
    return table.select(kept)


def sentences(report: FitReport) -> list[str]:
    """Return sentences about the memory that was filled, the optimizers that do not fit, and the way of searching."""
    found = [_about_pending(report), _about_devices(report)]
    found += [_about_none(report, device) for device in report.devices] + [_about_ranks(report)]
    return [sentence for sentence in found if sentence] + [_about_samples(report), _about_effort(report)]


def notes(report: FitReport) -> list[str]:
    """Return the notes of all answers, each once and with the cells that it is about, then those of the document."""
    about: dict[str, list[str]] = {}
    for cell in report.cells:
        reasons = [] if cell.pending else [cell.reason or "no reason was given"]
        for note in cell.answer.notes if cell.answer is not None else reasons:
            about.setdefault(note, []).append(f"{cell.optimizer} on {cell.device}")
    cells = len(report.cells)
    told = [note if len(who) == cells else f"{_few(who)}: {note}" for note, who in about.items()]
    return [*told, *report.notes]


def show(report: FitReport, console: Console) -> None:
    """Print a report: the matrix, a row for every cell, the notes, and last the sentences.

    Args:
        report: The document to print.
        console: The terminal.
    """
    parts: list[Part] = [matrix(report)] if len(report.devices) > 1 else []
    parts += [details(report), notes(report), *sentences(report)]
    render_parts(heading(report), parts, console)


def to_markdown(report: FitReport, figure: str = "") -> str:
    """Return the report as Markdown for GitHub.

    Args:
        report: The document to report.
        figure: The Markdown that shows the figure of the matrix; without it, the report has no figure.
    """
    from memprof.report.render.markdown import escape, render_table

    parts = [f"# {escape(heading(report).partition(' · ')[0].capitalize())}", escape(heading(report))]
    parts += [figure] if figure else []
    parts += [render_table(matrix(report))] if len(report.devices) > 1 else []
    parts += [render_table(details(report)), "\n".join(f"- {escape(one)}" for one in sentences(report))]
    listed = notes(report)
    parts += ["## Notes", "\n".join(f"- {escape(one)}" for one in listed)] if listed else []
    command = report.environment.command
    parts += ["## Reproduce", f"```sh\n{command}\n```"] if command else []
    return "\n\n".join(parts) + "\n"


def to_frame(report: FitReport) -> pd.DataFrame:
    """Return a data frame with a row for each cell. Figures are exact, sizes are in bytes, absent figures are NA."""
    import pandas as pd

    frame = pd.DataFrame([_record(report, cell) for cell in report.cells])
    words = {"model", "optimizer", "device", "knob", "phase", "method", "reason"}
    typed: pd.DataFrame = frame.astype({name: "string" if name in words else "Int64" for name in frame.columns})
    return typed


def _record(report: FitReport, cell: FitCell) -> dict[str, Any]:
    answer, device = cell.answer, _device(report, cell)
    return {
        "model": report.workload.model,
        "optimizer": cell.optimizer,
        "device": cell.device,
        "capacity_bytes": device.capacity_bytes,
        "usable_bytes": device.usable_bytes,
        "knob": report.vary.knob,
        "largest": answer and answer.value,
        "accumulate": answer and answer.accumulate,
        "global_batch": answer and answer.global_batch,
        "parameters": answer and answer.parameters,
        "peak_bytes": answer and answer.peak_bytes,
        "head_room_bytes": _head_room(report, cell),
        "phase": answer and answer.phase,
        "next": answer and answer.next_value,
        "next_peak_bytes": answer and answer.next_peak_bytes,
        "method": answer and answer.method,
        "reason": cell.reason,
    }


def _device(report: FitReport, cell: FitCell) -> FitDevice:
    return next(device for device in report.devices if device.name == cell.device)


def _head_room(report: FitReport, cell: FitCell) -> int | None:
    if cell.answer is None or cell.answer.peak_bytes is None:
        return None
    return _device(report, cell).usable_bytes - cell.answer.peak_bytes


def _largest(cell: FitCell) -> str:
    return fit_text(cell.answer) if cell.reason is None else "failed"


def _about_pending(report: FitReport) -> str:
    pending = sum(cell.pending for cell in report.cells)
    return f"The fit was interrupted: {pending} of {len(report.cells)} cells are not finished." if pending else ""


def _row(report: FitReport, cell: FitCell, several: bool) -> tuple[str, ...]:
    answer = cell.answer
    name = f"{cell.optimizer} on {cell.device}" if several else cell.optimizer
    if answer is None:
        return (name, _largest(cell), *[ABSENT] * (len(_TITLES) - 2))
    return (
        name,
        _largest(cell).partition(" (")[0],
        *(_step_figures(answer) if _several_batches(report) else (ABSENT, ABSENT)),
        format_count(answer.parameters),
        format_size(answer.peak_bytes),
        format_size(_head_room(report, cell)),
        phase_words(answer.phase) if answer.phase else ABSENT,
        ABSENT if answer.next_value is None else str(answer.next_value),
        format_size(answer.next_peak_bytes),
        answer.method,
    )


def _several_batches(report: FitReport) -> bool:
    """Return whether an optimizer step consists of more than one batch, over micro-batches or ranks."""
    return report.vary.samples is not None or report.recipe.global_batch(1) > 1


def _step_figures(answer: FitAnswer) -> list[str]:
    return [ABSENT if one is None else str(one) for one in (answer.accumulate, answer.global_batch)]


def _about_ranks(report: FitReport) -> str:
    """Return what the batch size means if an optimizer step consists of several ranks or micro-batches."""
    if report.vary.knob != BATCH or not _several_batches(report):
        return ""
    ranks = report.recipe.world_size
    whose = f"every one of {ranks} ranks, the rank that needs most binding all" if ranks > 1 else "the only rank"
    samples = ranks * (report.vary.samples or 0)
    kept = (
        f"as many of them as make up {samples}" if samples else f"{report.recipe.accumulate} of them whatever its size"
    )
    return f"The {BATCH} is that of a micro-batch on {whose}; a step takes {kept}."


def _about_devices(report: FitReport) -> str:
    words = {
        "device": "what is free there now",
        "catalog": "a GPU's memory beside the CUDA context",
        "budget": "the budget",
    }
    sources = " and ".join(dict.fromkeys(words[device.source] for device in report.devices))
    usable = {device.name: format_size(device.usable_bytes) for device in report.devices}
    sizes = ", ".join(f"{name} {size}" for name, size in usable.items())
    if len(set(usable.values())) == 1 and len(usable) > 1:
        sizes = f"{next(iter(usable.values()))} each"
    margin = "" if report.margin == "0%" else f", without a margin of {report.margin}"
    return f"To fill: {sizes} ({sources}{margin})."


def _about_none(report: FitReport, device: FitDevice) -> str:
    """Return which optimizers do not fit even with the smallest value, and which optimizers would fit."""
    cells = [cell for cell in report.cells if cell.device == device.name and cell.answer is not None]
    none = [cell for cell in cells if not cell.fits]
    if not none:
        return ""
    needs = {cell.optimizer: cell.answer.next_peak_bytes for cell in none if cell.answer is not None}
    smallest = next(cell.answer.next_value for cell in none if cell.answer is not None)
    who = ", ".join(f"{name} ({format_size(size)})" for name, size in needs.items())
    fitting = ", ".join(cell.optimizer for cell in cells if cell.fits)
    least = min((size, name) for name, size in needs.items() if size is not None) if any(needs.values()) else None
    ending = f"{fitting} would" if fitting else f"{least[1]} needs the least" if least else "no other optimizer fits"
    return f"On {device.name} not even {report.vary.knob}={smallest} fits with {who}; {ending}."


def _about_samples(report: FitReport) -> str:
    workload = report.workload
    if workload.lengths == "longest_batch":
        return "Batches are the longest that the workload declares, by its `longest_batch`."
    if workload.lengths == "unknown":
        return "Batches are what the workload's batch function makes; where lengths vary, give it a `longest_batch`."
    if report.vary.knob in _LENGTHS:
        return "Every sample has the full length."
    told = "".join(f", {name}={workload.knobs[name]}" for name in _LENGTHS if name in workload.knobs)
    most = f" (the model has positions for {workload.positions})" if workload.positions is not None else ""
    return f"Every sample is as long as declared{told}{most}; a longer one needs more."


def _about_effort(report: FitReport) -> str:
    done = report.evaluations
    how = [f"{done.predicted} values predicted"] if done.predicted else []
    how += [f"{done.trained} trainings with a memory limit"] if done.trained else []
    return f"Found with {' and '.join(how)}, for {len(report.cells)} cells." if how else ""


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
