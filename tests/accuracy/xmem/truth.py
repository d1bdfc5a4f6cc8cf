"""The table of measured runs: what was trained, what it took, and what four estimators said.

Facts from github.com/Stone-ResearchLife/xMem (MIT licence), whose authors measured them for "xMem" (Middleware 2025).
`ground_bytes` is the most memory in use on the GPU, as NVML reports it, above what was in use once the bare context was
there: the caching allocator's segments, and what libraries load later. Where the run ended out of memory it is what had
been reached by then, and only that it did end so counts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DATA = Path(__file__).parents[2] / "data" / "accuracy"
PEERS = ("xmem", "dnnmem", "schedtune", "llmem")
DEVICES = {
    "NVIDIA GeForce RTX 3060": "rtx-3060",
    "NVIDIA GeForce RTX 4060": "rtx-4060",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
}
Kind = Literal["cnn", "transformer", "large"]


@dataclass(frozen=True)
class Answer:
    """What another estimator said of a row.

    Attributes:
        bytes: the estimate; None if it has none.
        oom_right: whether its out-of-memory flag was right; None if that was not recorded.
        cap_failed: whether a second run, limited to the estimate, ran out of memory; None if there was none.
    """

    bytes: float | None
    oom_right: bool | None
    cap_failed: bool | None


@dataclass(frozen=True)
class Row:
    """One measured run.

    Attributes:
        kind: of model.
        model: its name in the table.
        optimizer: its class name.
        batch_size: examples per step.
        zero_grad: 0 at the start of a step, 1 before the backward pass, 2 after the step; None where not recorded.
        device: name in the catalog of GPUs.
        total_bytes: of the GPU.
        truth_bytes: measured.
        oom: the run ended out of memory.
        answers: of the other estimators, with their names.
        xmem_seconds: that xMem took for its estimate.
    """

    kind: Kind
    model: str
    optimizer: str
    batch_size: int
    zero_grad: int | None
    device: str
    total_bytes: int
    truth_bytes: int
    oom: bool
    answers: tuple[tuple[str, Answer], ...]
    xmem_seconds: float

    def answer(self, peer: str) -> Answer:
        """Return what another estimator said."""
        return dict(self.answers)[peer]

    @property
    def name(self) -> str:
        """What the row is, in one line."""
        mode = "-" if self.zero_grad is None else self.zero_grad
        return f"{self.model} {self.optimizer} b{self.batch_size} z{mode} {self.device}"


def read_rows(path: Path = DATA / "xmem_truth.csv") -> list[Row]:
    """Return the rows of a table in the format of `tests/data/accuracy/xmem_truth.csv`."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_row(record) for record in csv.DictReader(file)]


def _row(record: dict[str, str]) -> Row:
    kind = record["kind"]
    assert kind in ("cnn", "transformer", "large"), kind
    return Row(
        kind=kind,  # type: ignore[arg-type]
        model=record["model"],
        optimizer=record["optimizer"],
        batch_size=int(record["batch_size"]),
        zero_grad=int(record["zero_grad_mode"]) if record["zero_grad_mode"] else None,
        device=DEVICES[record["gpu"]],
        total_bytes=int(record["total_gpu_memory"]),
        truth_bytes=int(record["ground_bytes"]),
        oom=record["real_oom"] == "True",
        answers=tuple((peer, _answer(record, peer)) for peer in PEERS),
        xmem_seconds=int(record["xmem_runtime_ns"]) / 1e9,
    )


def _answer(record: dict[str, str], peer: str) -> Answer:
    estimate = float(record[f"{peer}_bytes"] or -1)
    return Answer(
        bytes=estimate if estimate > 0 else None,
        oom_right=_flag(record[f"{peer}_v1_correct"]),
        cap_failed=_flag(record[f"{peer}_v2_oom"]),
    )


def _flag(text: str) -> bool | None:
    return {"True": True, "False": False}.get(text)


def families(rows: Iterable[Row]) -> list[str]:
    """Return the models of the rows, in order of first appearance."""
    return list(dict.fromkeys(row.model for row in rows))
