"""Predict every measured run and write the accuracy report: `python -m tests.accuracy.xmem --help`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template

from tests.accuracy.xmem import report
from tests.accuracy.xmem.predictions import Prediction, predict_row
from tests.accuracy.xmem.truth import DATA, Row, read_rows

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[3]
REPORTS = ROOT / "reports"
SUMMARY = ROOT / "memprof" / "simulation" / "data" / "accuracy.json"


def main() -> None:
    """Predict, print, write."""
    arguments = _parser().parse_args()
    rows = [
        row for row in read_rows(arguments.table) if arguments.only in (None, row.kind) or arguments.only in row.name
    ]
    if not rows:
        sys.exit(f"no row matches {arguments.only!r}: it is a kind (cnn, transformer, large) or a model of the table")
    _import_libraries()
    predictions = [_shown(predict_row(row, arguments.shuffles)) for row in rows]
    full = [predict_row(row, 0) if len(set(p.shuffles)) > 1 else p for row, p in zip(rows, predictions, strict=True)]
    text = _text(predictions, full, arguments.shuffles)
    print(text)
    if arguments.only is None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "accuracy.md").write_text(text, encoding="utf-8")
        report.write_csv(predictions, full, arguments.out / "accuracy.csv")
        report.write_summary(predictions, arguments.summary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy.xmem", description=__doc__)
    parser.add_argument("--table", type=Path, default=DATA / "xmem_truth.csv", help="measured runs, as CSV")
    parser.add_argument("--only", help="a kind of model, or a model; nothing is written then")
    parser.add_argument("--shuffles", type=int, default=5, help="of the data; their median is the estimate (default 5)")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of accuracy.md and accuracy.csv")
    parser.add_argument("--summary", type=Path, default=SUMMARY, help="what `memprof doctor` reads, as JSON")
    return parser


def _import_libraries() -> None:
    """Import what the workloads import, so that no estimate's time has it."""
    from tests.accuracy.xmem.vision_models import torchvision_models

    torchvision_models()  # first: transformers imports torchvision where it is there
    import transformers

    transformers.logging.set_verbosity_error()


def _shown(prediction: Prediction) -> Prediction:
    error = "" if prediction.error is None else f"{prediction.error:+.2%}"
    print(f"{prediction.row.name}: {error} in {prediction.seconds:.1f} s", file=sys.stderr, flush=True)
    return prediction


def _text(predictions: Sequence[Prediction], full: Sequence[Prediction], shuffles: int) -> str:
    template = Template((HERE / "accuracy.template.md").read_text(encoding="utf-8"))
    return template.substitute(
        rows=len(predictions),
        torch=version("torch"),
        transformers=version("transformers"),
        machine=f"an {platform.machine()} machine with {os.cpu_count()} cores",
        shuffles=shuffles,
        goals=report.goals(predictions),
        kinds=report.by_kind(predictions, full),
        models=report.grouped(predictions, _model_name, "model"),
        optimizers=report.grouped(predictions, _optimizer_name, "optimizer"),
        checks=report.checks(predictions),
        times=report.times(predictions),
        every_row=report.every_row(predictions),
    )


def _model_name(row: Row) -> str:
    return row.model.rpartition("/")[2]


def _optimizer_name(row: Row) -> str:
    return f"{row.optimizer}, {report.KINDS[row.kind]}"


if __name__ == "__main__":
    main()
