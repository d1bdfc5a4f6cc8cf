"""The figure of the largest value for each optimizer on each device: a matrix whose darker cells are larger."""

from __future__ import annotations

from memprof.documents.fit import FitCell, FitReport
from memprof.report.content.columns import fit_text
from memprof.report.figures.svg import WIDTH, Drawing, clip
from memprof.units import format_size

_NAMES, _RIGHT, _TOP, _ROW = 170, 12, 64, 34
_WIDEST = 130
_LIGHTEST, _DARKEST = 0.08, 0.55


def draw_matrix(report: FitReport) -> tuple[str, str]:
    """Draw the figure, and return its description and its SVG."""
    optimizers = list(dict.fromkeys(cell.optimizer for cell in report.cells))
    title = f"Largest {report.vary.knob} of {report.workload.name} for each optimizer on each device"
    text = f"{title}. {' '.join(_words(report, one) for one in optimizers)}"
    drawing = Drawing(title, text)
    width = min(_WIDEST, (WIDTH - _NAMES - _RIGHT) / max(1, len(report.devices)))
    drawing.text(_NAMES, 20, f"largest {report.vary.knob}; a cross: does not fit", "muted")
    for column, device in enumerate(report.devices):
        middle = _NAMES + width * (column + 0.5)
        drawing.text(middle, _TOP - 24, clip(device.name, width - 6), "strong", "middle")
        drawing.text(middle, _TOP - 9, clip(format_size(device.usable_bytes, 1), width - 6), "muted", "middle")
    most = max((cell.answer.value or 0 for cell in report.cells if cell.answer is not None), default=0)
    for row, optimizer in enumerate(optimizers):
        y = _TOP + _ROW * row
        drawing.text(_NAMES - 10, y + _ROW / 2 + 4, clip(optimizer, _NAMES - 16), anchor="end")
        for column, device in enumerate(report.devices):
            _draw_cell(drawing, report.cell(optimizer, device.name), most, _NAMES + width * column, y, width)
    return text, drawing.to_svg(_TOP + _ROW * len(optimizers) + 14)


def _draw_cell(drawing: Drawing, cell: FitCell, most: int, x: float, y: float, width: float) -> None:
    middle = x + width / 2
    if not cell.fits:
        drawing.rectangle(x + 1, y + 1, width - 2, _ROW - 2, "band")
        drawing.mark(middle, y + _ROW / 2, "cross", "curve line vermillion")
        return
    value = cell.answer.value if cell.answer is not None else None
    share = 1.0 if value is None or not most else value / most
    opacity = _LIGHTEST + (_DARKEST - _LIGHTEST) * share
    drawing.rectangle(x + 1, y + 1, width - 2, _ROW - 2, "fill blue", opacity=opacity)
    drawing.text(middle, y + _ROW / 2 + 4, clip(value_text(cell), width - 6), "strong", "middle")


def value_text(cell: FitCell) -> str:
    """Return the value of a cell without the parameters of the model: `~61`, `any` or `none`."""
    return fit_text(cell.answer).partition(" (")[0]


def _words(report: FitReport, optimizer: str) -> str:
    found = (f"{device.name} {value_text(report.cell(optimizer, device.name))}" for device in report.devices)
    return f"{optimizer}: {', '.join(found)}."
