"""A trial's trace as files, for PyTorch's memory viewer and for Perfetto."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from memprof.allocator.settings import AllocatorSettings
from memprof.export.memory_viz import save_snapshot
from memprof.export.perfetto import save_perfetto
from memprof.trace.events import Trace


def save_trace(
    trace: Trace,
    folder: Path,
    spec: str,
    settings: AllocatorSettings | None = None,
    reserved: Sequence[int] = (),
) -> None:
    """Write a trial's trace in both formats.

    Args:
        trace: at the sizes that were asked for.
        folder: where to; it exists.
        spec: of the optimizer; it names the files.
        settings: of the caching allocator, for a simulated GPU.
        reserved: the bytes reserved after each event, for a simulated GPU.
    """
    snapshot, perfetto = trace_paths(folder, spec)
    save_snapshot(trace, snapshot, settings)
    save_perfetto(trace, perfetto, spec, reserved)


_ODD = re.compile(r"[^A-Za-z0-9.=_-]+")


def trace_paths(folder: Path, spec: str) -> tuple[Path, Path]:
    """Return the snapshot's and the Perfetto trace's file of an optimizer."""
    name = _ODD.sub("_", spec).strip("._") or "trace"
    return folder / f"{name}.pickle", folder / f"{name}.perfetto.json"
