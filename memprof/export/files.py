"""A trial's trace as files, for PyTorch's memory viewer and for Perfetto."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memprof.allocator.settings import AllocatorSettings
from memprof.export.memory_viz import save_snapshot
from memprof.export.paths import trace_paths
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
