"""The baseline: the figures that were last accepted, in a sorted JSON file that is committed with the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from memprof.devices.host import memprof_version
from memprof.documents.confidence import Document
from memprof.documents.wording import made_where
from memprof.errors import UsageError, did_you_mean
from memprof.gate.entry_figures import Figures, Record
from memprof.gate.metrics import METRICS

SCHEMA: Literal["memprof.baseline/1"] = "memprof.baseline/1"
_VERSION = re.compile(r"memprof\.baseline/(\d+)")
_REMAKE = "remake it with `memprof gate --update-baseline`, or restore it from version control"

Entries = dict[str, dict[str, Record]]


class Baseline(Document):
    """The accepted figures, by entry and optimizer.

    Attributes:
        memprof: The version that wrote the file.
        entries: A record for each optimizer of each entry.
    """

    schema_: Literal["memprof.baseline/1"] = Field(default=SCHEMA, alias="schema")
    memprof: str
    entries: Entries = Field(default_factory=dict)

    def record(self, entry: str, optimizer: str) -> Record | None:
        """Return the accepted record of an entry's optimizer, or None if there is none."""
        return self.entries.get(entry, {}).get(optimizer)

    def to_json(self) -> str:
        """Return the document as sorted JSON that ends in a newline. Fields with their default value are left out."""
        document = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return json.dumps({"schema": SCHEMA, **document}, indent=1, sort_keys=True) + "\n"


class BaselineChange(Document):
    """What an update did to one figure, or to a whole record if `metric` is null.

    Attributes:
        entry: The name of the entry.
        optimizer: The optimizer spec.
        metric: The name of the figure, or null if the change concerns the whole record.
        old: The figure before the update; null if there was none.
        new: The figure after the update; null if there is none.
        what: The kind of change.
        remark: A sentence for a change that is not a figure.
    """

    entry: str
    optimizer: str
    metric: str | None = None
    old: int | None = None
    new: int | None = None
    what: Literal["added", "removed", "changed"] = "changed"
    remark: str | None = None


def empty_baseline() -> Baseline:
    """Return a baseline without any entries."""
    return Baseline(schema=SCHEMA, memprof=memprof_version())


def load_baseline(path: Path) -> Baseline | None:
    """Read the baseline from a file.

    The file can also be the JSON report of a gate, so that a branch can be compared with another branch's report.

    Args:
        path: The path of the file.

    Returns:
        The baseline, or None if the file does not exist.

    Raises:
        UsageError: The file cannot be read, is incomplete, is not a baseline, or is from a newer version.
    """
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: the baseline is not JSON ({error.msg}); {_REMAKE}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read the baseline {path}: {reason}; {_REMAKE}") from None
    return _validated(path, _as_baseline(path, document))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a figure")


def _as_baseline(path: Path, document: Any) -> dict[str, Any]:
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == "memprof.gate/1":
        entries: dict[str, dict[str, Any]] = {}
        for figures in document.get("figures", []):
            kept = {name: figures[name] for name in Record.model_fields if name in figures}
            if figures.get("status") == "ok":
                entries.setdefault(figures.get("entry", ""), {})[figures.get("optimizer", "")] = kept
        return {"schema": SCHEMA, "memprof": document.get("memprof", "unknown"), "entries": entries}
    if schema != SCHEMA:
        newer = _VERSION.fullmatch(str(schema))
        if newer is not None and int(newer[1]) > 1:
            raise UsageError(f"the baseline {path} was written by a newer memprof ({schema}); upgrade memprof")
        raise UsageError(f"{path} is not a baseline: its schema is {schema!r}, not {SCHEMA!r}; {_REMAKE}")
    return dict(document)


def _validated(path: Path, document: dict[str, Any]) -> Baseline:
    try:
        baseline = Baseline.model_validate(document, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"the baseline {path} was damaged: {where}: {first['msg']}; {_REMAKE}") from None
    for entry, optimizer, record in _records(baseline):
        unknown = next((name for name in [*record.values, *record.unlimited] if name not in METRICS), None)
        if unknown is not None:
            hint = did_you_mean(unknown, list(METRICS))
            raise UsageError(f"the baseline {path} has an unknown figure {unknown!r} in {entry}/{optimizer}{hint}")
    return baseline


def _records(baseline: Baseline) -> Iterable[tuple[str, str, Record]]:
    for entry, records in baseline.entries.items():
        for optimizer, record in records.items():
            yield entry, optimizer, record


def update(
    baseline: Baseline, figures: Sequence[Figures], known: Iterable[str], complete: bool
) -> tuple[Baseline, list[BaselineChange]]:
    """Return a baseline that accepts the figures, and the list of changes.

    A record whose figures all lie within their noise stays byte for byte as it is. Runs that failed or do not fit
    cannot be accepted, so they change nothing.

    Args:
        baseline: The baseline before the update.
        figures: The figures to accept.
        known: The names of all entries of the configuration. If `complete` is set, records of other entries are
            removed.
        complete: Whether every entry was run. If it is False, the records of entries that were not run are kept.

    Returns:
        The new baseline and the changes; the old baseline itself if nothing changed.
    """
    entries = {entry: dict(records) for entry, records in baseline.entries.items()}
    changes: list[BaselineChange] = []
    for made in figures:
        old = baseline.record(made.entry, made.optimizer)
        new = made.record()
        found = record_changes(made, old)
        if made.status == "ok" and found:
            entries.setdefault(made.entry, {})[made.optimizer] = new
            changes += found
    if complete:
        changes += _remove(entries, figures, set(known))
    kept = {entry: records for entry, records in entries.items() if records}
    if not changes:
        return baseline, []
    return Baseline(schema=SCHEMA, memprof=memprof_version(), entries=kept), changes


def _remove(entries: Entries, figures: Sequence[Figures], known: set[str]) -> list[BaselineChange]:
    """Drop the records that no figures were made for; an entry whose level is off keeps its records."""
    made = {(one.entry, one.optimizer) for one in figures}
    ran = {one.entry for one in figures}
    gone = [
        (entry, optimizer)
        for entry, records in entries.items()
        for optimizer in records
        if (entry in ran or entry not in known) and (entry, optimizer) not in made
    ]
    for entry, optimizer in gone:
        del entries[entry][optimizer]
    return [BaselineChange(entry=entry, optimizer=optimizer, what="removed") for entry, optimizer in gone]


def record_changes(made: Figures, old: Record | None) -> list[BaselineChange]:
    """Return how the figures differ from the accepted record by more than their noise.

    Args:
        made: The figures of this run.
        old: The accepted record, or None if there is none.

    Returns:
        The changes; an empty list if there are none.
    """
    change = partial(BaselineChange, entry=made.entry, optimizer=made.optimizer)
    if old is None:
        values = [change(metric=name, new=value, what="added") for name, value in made.values.items()]
        return values or [change(what="added")]
    remarks = old.setup.differences(made.setup)
    if made.source == "measured" or old.source == "measured":
        remarks += old.fingerprint.differences(made.fingerprint)
    if (old.source, old.device) != (made.source, made.device):
        remarks.append(f"{made_where(old.source, old.device)} is now {made_where(made.source, made.device)}")
    changes = [change(remark=remark) for remark in remarks]
    for name, metric in METRICS.items():
        before, after = old.values.get(name), made.values.get(name)
        if before != after and not within_noise(before, after, float(metric.noise_of(made.source))):
            changes.append(change(metric=name, old=before, new=after))
    if sorted(old.unlimited) != sorted(made.unlimited) and not changes:
        changes.append(change(remark="the searches without a largest value changed"))
    return changes


def within_noise(before: int | None, after: int | None, share: float) -> bool:
    """Return whether a figure changed by no more than its noise, which is given as a share of `before`."""
    return before is not None and after is not None and abs(after - before) <= share * before
