"""The names of the files of a trace: `adam.pickle` for PyTorch's memory viewer, `adam.perfetto.json`."""

from __future__ import annotations

import re
from pathlib import Path

_ODD = re.compile(r"[^A-Za-z0-9.=_-]+")


def trace_paths(folder: Path, spec: str) -> tuple[Path, Path]:
    """Return the snapshot's and the Perfetto trace's file of an optimizer."""
    name = _ODD.sub("_", spec).strip("._") or "trace"
    return folder / f"{name}.pickle", folder / f"{name}.perfetto.json"
