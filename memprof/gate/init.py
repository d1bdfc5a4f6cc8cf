"""Writes the first budgets for `memprof gate init` from a comparison, with the figures that they are based on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memprof.documents.comparison import Comparison, WorkloadInfo
from memprof.documents.recipe import Recipe
from memprof.documents.wording import made_where
from memprof.errors import UsageError
from memprof.gate.config import Config, read_config
from memprof.gate.config_file import PROJECT_FILE, ConfigFile, parse_toml
from memprof.gate.entry_figures import Figures
from memprof.gate.metrics import METRICS
from memprof.units import parse_size

_HEAD = """\
# Memory budgets. `memprof gate` runs every entry and fails where a limit is exceeded;
# `memprof gate --update-baseline` accepts the figures of now. Commit this file and the baseline.
"""
_ALL_FIXED = "# Every knob is fixed here; take out those whose default in the model's code is to count."
_HEADROOM = 1.1


def starter(
    name: str, comparison: Comparison, figures: Sequence[Figures], prefix: str, knobs: Mapping[str, Any] | None = None
) -> str:
    """Return an entry in TOML.

    A ceiling leaves 10 % of headroom, but it is never above the memory of the device. Knobs that the user did not set
    are not written: if their defaults change, the program has changed, and the gate should notice that.

    Args:
        name: The name of the entry.
        comparison: The comparison that the limits are based on.
        figures: The figures of its finished runs.
        prefix: What the table's name begins with: `tool.memprof.` in pyproject.toml.
        knobs: The knobs that the user set. A saved comparison does not tell them apart from the defaults; then this is
            None and all knobs are written.

    Returns:
        The text of the entry.
    """
    workload, recipe = trained(comparison)
    lines = [f"# {_origin(comparison, figures)}", *([_ALL_FIXED] if knobs is None and workload.knobs else [])]
    lines += [f"[{prefix}budgets.{name}]"]
    fixed = workload.knobs if knobs is None else knobs
    keys: dict[str, Any] = {
        "model": workload.model,
        "knobs": {key: value for key, value in fixed.items() if isinstance(value, (bool, int, float, str))},
        "batch_size": workload.batch_size,
        "inputs": list(workload.inputs),
        "target": workload.target,
        "optimizers": [one.optimizer for one in figures],
        "device": figures[0].device,
        **recipe.model_dump(mode="json", exclude_defaults=True),
    }
    lines += [f"{key} = {to_toml(value)}" for key, value in keys.items() if value not in (None, [], {})]
    return "\n".join([*lines, "", *_limits(comparison, figures)]) + "\n"


def trained(comparison: Comparison) -> tuple[WorkloadInfo, Recipe]:
    """Return the workload of a comparison, and its recipe.

    Raises:
        UsageError: it is of a script.
    """
    if comparison.workload is None or comparison.recipe is None:
        raise UsageError(f"{comparison.subject} is a script, and a budget is made of a model; write the entry by hand")
    return comparison.workload, comparison.recipe


def add_entry(path: Path, name: str, text: str) -> tuple[str, Config]:
    """Add an entry at the end of a configuration, without writing the file.

    Args:
        path: The path of the configuration file, which need not exist.
        name: The name of the entry.
        text: The entry in TOML.

    Returns:
        The new text of the file, and the configuration that it contains.

    Raises:
        UsageError: The file already has an entry of that name, or the new text is not valid.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    prefix = prefix_of(path)
    head = "" if before else _HEAD
    after = f"{before.rstrip()}\n\n{text}" if before.strip() else f"{head}\n{text}"
    document = parse_toml(path, before)
    table = document.get("tool", {}).get("memprof", {}) if prefix else document
    if name in table.get("budgets", {}):
        raise UsageError(f"{path.name} has a budget {name!r} already; give this one another --name")
    document = parse_toml(path, after)
    table = document["tool"]["memprof"] if prefix else document
    return after, read_config(ConfigFile(path, after, table, prefix))


def prefix_of(path: Path) -> str:
    """Return what the names of memprof's tables begin with in that file."""
    return "tool.memprof." if path.name == PROJECT_FILE else ""


def model_from(model: str, folder: Path) -> str:
    """Return the model text with its file named relative to `folder` instead of the current folder."""
    file, colon, attr = model.rpartition(":")
    if not colon or not file.endswith(".py") or Path(file).is_absolute():
        return model
    return f"{Path(os.path.relpath(file, folder)).as_posix()}:{attr}"


def to_toml(value: Any) -> str:
    """Return a value in TOML. Strings are written as in JSON, and tables are written inline."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {to_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _origin(comparison: Comparison, figures: Sequence[Figures]) -> str:
    environment = comparison.environment
    made = made_where(figures[0].source, figures[0].device)
    return f"{made} by memprof {environment.memprof} with torch {environment.torch} on {environment.date[:10]}"


def _limits(comparison: Comparison, figures: Sequence[Figures]) -> list[str]:
    peak = "peak_allocated_bytes"
    largest = max((one.values.get(peak, 0) for one in figures), default=0)
    ceiling, whole = _rounded_up(largest * _HEADROOM), _rounded_down(comparison.capacity.bytes)
    if parse_size(ceiling) > comparison.capacity.bytes:
        ceiling = whole
    lines = [
        "# A ceiling, a change against the baseline, or both.",
        *_now(figures, peak),
        f'{peak} = ["{ceiling}", "+2%"]',
        "",
        "# What the optimizer keeps between two steps is exact: any growth is a change of the program.",
        *_now(figures, "state_bytes"),
        'state_bytes = "+0%"',
        "",
        "# Further limits:",
    ]
    if any("peak_reserved_bytes" in one.values for one in figures):
        lines += [f"# {line}" for line in _now(figures, "peak_reserved_bytes", "")]
        lines.append(f'# peak_reserved_bytes = "{whole}"')
    lines += [
        f"# max_batch_size = {trained(comparison)[0].batch_size}  # at least; takes a search",
        '# process_bytes = { limit = "+10%", level = "warn" }',
        '# level = "warn"  # of the whole entry: "error", "warn" or "off"',
        '# message = "whom to ask before this is raised"',
    ]
    return lines


def _now(figures: Sequence[Figures], name: str, lead: str = "# ") -> list[str]:
    metric = METRICS[name]
    now = [f"{one.optimizer} {metric.text(one.values[name])}" for one in figures if name in one.values]
    return [f"{lead}Now: {'; '.join(now)}."] if now else []


def _rounded_up(size: float) -> str:
    """Return a size rounded up to two digits, such as `1.3 GiB` or `130 MiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        value = size / factor
        if value >= 1:
            tenths = 1 if value < 10 else 10 if value < 100 else 100
            return f"{math.ceil(10 * value / tenths) * tenths / 10:g} {unit}"
    return f"{math.ceil(size)} B"


def _rounded_down(size: int) -> str:
    """Return a device's memory in GiB, rounded down to two decimals so that the limit is not above the memory."""
    return f"{int(100 * size / 2**30) / 100:g} GiB"
