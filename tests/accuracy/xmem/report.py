"""The accuracy report: `reports/accuracy.md`, and its rows in `reports/accuracy.csv`."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memprof.units import format_size
from tests.accuracy.xmem.predictions import Prediction
from tests.accuracy.xmem.statistics import (
    Failures,
    Summary,
    failures,
    peer_errors,
    peer_failures,
    percentile,
    summarise,
    upper_held,
    upper_width,
)
from tests.accuracy.xmem.truth import PEERS, Row

KINDS = {"transformer": "transformers", "cnn": "CNNs", "large": "1.5-4B models"}
GOALS = {"transformer": (0.004, 0.025), "cnn": (0.012, 0.05), "large": (0.02, None)}
_NAMES = {"xmem": "xMem", "dnnmem": "DNNMem", "schedtune": "SchedTune", "llmem": "LLMem"}
_SUMMARY_HEAD = ("rows", "median", "p90", "p95", "worst", "signed", "too low")
_HELD_HEAD = ("upper bound held", "above the estimate by")

Table = list[tuple[str, ...]]


def by_kind(predictions: Sequence[Prediction], full: Sequence[Prediction]) -> str:
    """Return the comparison with the other estimators, kind by kind, on the rows whose truth is known."""
    table: Table = [("models", "estimator", *_SUMMARY_HEAD, *_HELD_HEAD)]
    for kind, title in KINDS.items():
        ours = [p for p in predictions if p.row.kind == kind]
        table.append((title, "**memprof**", *_cells(_summary(ours)), *_held(ours)))
        if kind != "cnn":
            others = _of_kind(full, kind)
            table.append((title, "memprof, every line 128 tokens", *_cells(_summary(others)), *_held(others)))
        rows = [p.row for p in ours]
        table += [(title, _NAMES[peer], *_cells(summarise(peer_errors(rows, peer))), "", "") for peer in PEERS]
    return markdown([line for line in table if line[2] != "0"])


def goals(predictions: Sequence[Prediction]) -> str:
    """Return what was aimed at and what was reached."""
    table: Table = [("what", "goal", "reached", "")]
    for kind, (median, p90) in GOALS.items():
        summary = _summary(_of_kind(predictions, kind))
        if summary is None:
            continue
        table.append(_goal(f"{KINDS[kind]}: median error", median, summary.median))
        if p90 is not None:
            table.append(_goal(f"{KINDS[kind]}: 90 % of rows within", p90, summary.p90))
    right = 1 - failures(predictions).flag_wrong / len(predictions)
    held = upper_held(predictions)
    if held is not None:
        table.append(("upper bound held", "97 %", f"{held:.1%}", "reached" if held >= 0.97 else "missed"))
    table.append(("out of memory told right", "98 %", f"{right:.1%}", "reached" if right >= 0.98 else "missed"))
    return markdown(table)


def _goal(what: str, goal: float, reached: float) -> tuple[str, ...]:
    return (what, f"{goal:.1%}", f"{reached:.2%}", "reached" if reached < goal else "missed")


def grouped(predictions: Sequence[Prediction], key: Callable[[Row], str], head: str) -> str:
    """Return the errors of groups of rows, with xMem's median beside them."""
    table: Table = [(head, *_SUMMARY_HEAD, *_HELD_HEAD, "xMem's median")]
    for name in dict.fromkeys(key(prediction.row) for prediction in predictions):
        group = [prediction for prediction in predictions if key(prediction.row) == name]
        peer = summarise(peer_errors([prediction.row for prediction in group], "xmem"))
        beside = "" if peer is None else f"{peer.median:.2%}"
        table.append((name, *_cells(_summary(group)), *_held(group), beside))
    return markdown(table)


def checks(predictions: Sequence[Prediction]) -> str:
    """Return the protocol's two checks, ours and the others'."""
    rows = [prediction.row for prediction in predictions]
    table: Table = [("estimator", "rows", "out of memory told wrong", "limit below the truth", "either")]
    table.append(_failure_line("**memprof**", failures(predictions)))
    table.append(_failure_line("**memprof**, limit at the upper bound", failures(predictions, upper=True)))
    table += [_failure_line(_NAMES[peer], peer_failures(rows, peer, total_share=True)) for peer in PEERS]
    for peer in PEERS:
        table.append(_failure_line(f"{_NAMES[peer]}, second run made", peer_failures(rows, peer, total_share=False)))
    return markdown(table)


def _failure_line(name: str, found: Failures) -> tuple[str, ...]:
    caps = f"{found.cap_failed} of {found.cap_rows}"
    rate = "" if found.rate is None else f"{found.rate:.1%}"
    return (name, str(found.flag_rows), str(found.flag_wrong), caps, rate)


def times(predictions: Sequence[Prediction]) -> str:
    """Return the seconds per estimate."""
    table: Table = [("models", "median", "95th percentile", "longest", "xMem's median")]
    for kind, title in KINDS.items():
        group = _of_kind(predictions, kind)
        if group:
            seconds = [prediction.seconds for prediction in group]
            peer = statistics.median(prediction.row.xmem_seconds for prediction in group)
            middle, most = statistics.median(seconds), percentile(seconds, 0.95)
            table.append((title, f"{middle:.2f} s", f"{most:.2f} s", f"{max(seconds):.2f} s", f"{peer:.1f} s"))
    return markdown(table)


def every_row(predictions: Sequence[Prediction]) -> str:
    """Return one line per row."""
    head = ("model", "optimizer", "batch", "zero_grad", "GPU", "truth", "predicted", "error", "xMem", "shuffles")
    return markdown([head, *(_row_line(prediction) for prediction in predictions)])


def _row_line(prediction: Prediction) -> tuple[str, ...]:
    row = prediction.row
    peer = row.answer("xmem").bytes
    return (
        row.model.rpartition("/")[2],
        row.optimizer,
        str(row.batch_size),
        "" if row.zero_grad is None else str(row.zero_grad),
        row.device,
        "out of memory" if row.oom else format_size(row.truth_bytes),
        "out of memory" if prediction.oom else format_size(prediction.bytes),
        "" if prediction.error is None else f"{prediction.error:+.2%}",
        "" if peer is None or row.oom else f"{peer / row.truth_bytes - 1:+.2%}",
        _range(prediction),
    )


def _range(prediction: Prediction) -> str:
    found = set(prediction.shuffles)
    return f"{format_size(min(found))} to {format_size(max(found))}" if len(found) > 1 else ""


def write_csv(predictions: Iterable[Prediction], full: Iterable[Prediction], path: Path) -> None:
    """Write one line per row, in bytes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_record(ours, other) for ours, other in zip(predictions, full, strict=True))


_COLUMNS = (
    *("kind", "model", "optimizer", "batch_size", "zero_grad", "device", "truth_bytes", "truth_oom"),
    *("predicted_bytes", "predicted_upper_bytes", "predicted_oom", "error"),
    *("shuffles_bytes", "full_length_bytes", "seconds", "reason"),
)


def _record(prediction: Prediction, full: Prediction) -> dict[str, Any]:
    row = prediction.row
    return {
        "kind": row.kind,
        "model": row.model,
        "optimizer": row.optimizer,
        "batch_size": row.batch_size,
        "zero_grad": row.zero_grad,
        "device": row.device,
        "truth_bytes": row.truth_bytes,
        "truth_oom": row.oom,
        "predicted_bytes": prediction.bytes,
        "predicted_upper_bytes": prediction.upper_bytes,
        "predicted_oom": prediction.oom,
        "error": None if prediction.error is None else round(prediction.error, 6),
        "shuffles_bytes": " ".join(map(str, prediction.shuffles)),
        "full_length_bytes": full.bytes,
        "seconds": round(prediction.seconds, 3),
        "reason": prediction.reason,
    }


def write_summary(predictions: Sequence[Prediction], path: Path) -> None:
    """Write what `memprof doctor` says of predictions: the errors of each kind of model."""
    groups = {KINDS[kind]: _of_kind(predictions, kind) for kind in KINDS}
    document = {
        "schema": "memprof.accuracy/1",
        "source": f"{len(predictions)} training runs on an RTX 3060, an RTX 4060 and an A100, measured by the authors "
        "of xMem (github.com/Stone-ResearchLife/xMem, MIT licence)",
        "command": "python -m tests.accuracy.xmem",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "torch": version("torch").partition("+")[0],
        "families": [family for name, group in groups.items() if (family := _family(name, group)) is not None],
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _family(name: str, predictions: Sequence[Prediction]) -> dict[str, Any] | None:
    summary = _summary(predictions)
    if summary is None:
        return None
    return {
        "name": name,
        "runs": summary.rows,
        "median_error": round(summary.median, 5),
        "p95_error": round(summary.p95, 5),
        "signed_median": round(summary.signed, 5),
        "upper_held": upper_held(predictions),
    }


def _of_kind(predictions: Sequence[Prediction], kind: str) -> list[Prediction]:
    return [prediction for prediction in predictions if prediction.row.kind == kind]


def _summary(predictions: Sequence[Prediction]) -> Summary | None:
    return summarise([prediction.error for prediction in predictions if prediction.error is not None])


def _held(predictions: Sequence[Prediction]) -> tuple[str, str]:
    held, width = upper_held(predictions), upper_width(predictions)
    return ("", "") if held is None or width is None else (f"{held:.0%}", f"{width:.1%}")


def _cells(summary: Summary | None) -> tuple[str, ...]:
    if summary is None:
        return ("0", *[""] * (len(_SUMMARY_HEAD) - 1))
    shares = (summary.median, summary.p90, summary.p95, summary.worst)
    return (str(summary.rows), *(f"{share:.2%}" for share in shares), f"{summary.signed:+.2%}", f"{summary.under:.0%}")


def markdown(table: Table) -> str:
    """Return a table, its first line the head."""
    head, *lines = table
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))
