"""Shows progress on stderr: on a terminal as one line that changes, and elsewhere as one line for each finished trial.

The line is drawn only when a worker reports: no thread refreshes it, because that would disturb a measurement.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from memprof.documents.comparison import Run
from memprof.documents.wording import phase_words
from memprof.report.content.columns import step_seconds
from memprof.report.content.sections import ending
from memprof.report.render.terminal import make_console
from memprof.units import format_seconds, format_size
from memprof.workers.progress import Progress as Event

_STAGES = {"start": "starting", "build": "building the model", "done": "done"}


class Watcher:
    """Shows progress events; use it in a `with` block and pass it as `on_progress`.

    Args:
        console: The console to draw on.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[state]}", markup=False),
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("starting PyTorch", state="", total=1)

    def __enter__(self) -> Watcher:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one progress event."""
        if self._bar is not None:
            fraction = event.step / event.steps if event.stage == "step" and event.steps else 0.0
            done = event.trial - 1 + (1.0 if event.stage == "done" else fraction)
            self._bar.update(
                self._task,
                description=name_of(event),
                state=state_of(event),
                completed=done,
                total=event.trials,
            )
            self._bar.refresh()
        elif event.stage == "done":
            self._console.print(Text(f"{name_of(event)}: {result_of(event)}"), soft_wrap=True)


def make_watcher() -> Watcher:
    """Return a watcher that draws on stderr."""
    import sys

    return Watcher(make_console(sys.stderr))


def name_of(event: Event) -> str:
    """Return the number and the label of a trial, such as `[2/6] adam`."""
    purpose = f" ({event.purpose})" if event.purpose in ("fit", "confirm") else ""
    return f"[{event.trial}/{event.trials}] {event.label}{purpose}"


def state_of(event: Event) -> str:
    """Return the state of a trial, such as `step 2/3, peak 1.20 GiB`; of a script with its phase behind the step."""
    if event.purpose == "predict" and event.stage != "done":
        return f"predicted {event.step} of {event.steps}" if event.steps else _STAGES["start"]
    step = f"step {event.step}/{event.steps}" if event.steps else f"step {event.step}"
    doing = step if event.stage == "step" else _STAGES[event.stage]
    if event.phase:
        doing += f", {phase_words(event.phase)}"
    return doing if event.peak_bytes is None else f"{doing}, peak {format_size(event.peak_bytes)}"


def result_of(event: Event) -> str:
    """Return the result of a trial: its peak and optimizer state, or why it has none."""
    run = event.run
    if run is None:
        return state_of(event)
    if run.status != "ok":
        return ending(run)
    return ", ".join(_figures(run, with_state=event.purpose == "measure")) or "done"


def _figures(run: Run, with_state: bool) -> list[str]:
    figures = [f"peak {format_size(run.peak.allocated_bytes)}"] if run.peak is not None else []
    if with_state and run.state is not None:
        figures.append(f"state {format_size(run.state.bytes)}")
    if with_state and step_seconds(run) is not None:
        figures.append(f"{format_seconds(step_seconds(run))} per step")
    return figures
