"""Writes a trial's trace to files for PyTorch's memory viewer and for Perfetto."""

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
        trace: the events of the trial, with the sizes that were requested.
        folder: the folder of the files, which exists.
        spec: the optimizer spec, which gives the files their names.
        settings: the settings of the caching allocator, for a simulated GPU.
        reserved: the bytes reserved after each event, for a simulated GPU.
    """
    snapshot, perfetto = trace_paths(folder, spec)
    save_snapshot(trace, snapshot, settings)
    save_perfetto(trace, perfetto, spec, reserved)


_ODD = re.compile(r"[^A-Za-z0-9.=_-]+")


def trace_paths(folder: Path, spec: str) -> tuple[Path, Path]:
    """Return the paths of an optimizer's snapshot and of its Perfetto trace.

    Args:
        folder: the folder of the files.
        spec: the optimizer spec.
    """
    name = _ODD.sub("_", spec).strip("._") or "trace"
    return folder / f"{name}.pickle", folder / f"{name}.perfetto.json"
