"""Record on a CUDA device what guards the accuracy where there is none; under ten minutes on an H200.

    python -m tests.gpu.record OUT [--part tests] [--part main] [--part sm3] [--part histories] [--part peaks]

Parts are those named, or all, in this order. Every trial is written as soon as it is done and is not done again when
the command is repeated with the same OUT; no new trial begins after `--minutes`. OUT's `peaks.json` and
`histories.json` go to tests/data/h200, `main.*` and `sm3.md` to reports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.gpu.recordings import HISTORIES_SCHEMA, PEAKS_SCHEMA, Recording, bare_history

README_COMMAND = ["gpt2", "-b", "1", "--set", "seq_len=32"]
OPTIMIZERS = ("sm3", "adam", "adafactor", "sgd")
PRECISIONS = ("fp32", "amp-bf16")
# Knobs, and two batch sizes; smaller than what the GPU could do, for time goes into building models.
WORKLOADS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "gpt2": ({"seq_len": 512}, (4, 16)),
    "resnet50": ({}, (16, 64)),
    "bert-large": ({"seq_len": 128}, (4, 16)),
    "vit-b16": ({}, (8, 32)),
    "llama": ({"n_layers": 4, "seq_len": 512}, (1, 4)),
    "transformer-big": ({"seq_len": 128}, (4, 16)),
    "mlp": ({}, (64, 1024)),
}
HISTORIES = (
    ("gpt2", "adam", "fp32"),
    ("gpt2", "sm3", "amp-bf16"),
    ("resnet50", "sgd", "fp32"),
    ("vit-b16", "adam", "amp-bf16"),
    ("mlp", "adafactor", "fp32"),
)
LEFT_OUT = {"breakdown", "timeline", "fit", "confidence"}


def main() -> int:
    """Record the parts asked for; return 1 if one of them failed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--part", action="append", choices=list(PARTS))
    arguments.add_argument("--workload", action="append", choices=list(WORKLOADS))
    arguments.add_argument("--minutes", type=float, default=9.0)
    arguments.add_argument("--one-history", nargs=3, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.one_history:
        json.dump(_history(*options.one_history), sys.stdout)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    options.until = time.monotonic() + 60 * options.minutes
    options.workload = options.workload or list(WORKLOADS)
    failed = [name for name in options.part or PARTS if not PARTS[name](options)]
    print(f"failed: {', '.join(failed)}" if failed else "all recorded", file=sys.stderr)
    return 1 if failed else 0


def _record_tests(options: argparse.Namespace) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "tests/gpu/test_cuda.py"]
    return _to_file(command, options.out / "gpu-tests.txt")


def _record_main(options: argparse.Namespace) -> bool:
    memprof = [sys.executable, "-m", "memprof"]
    fine = _to_file([*memprof, "doctor", "--json"], options.out / "doctor.json")
    exports = ["--export-json", str(options.out / "main.json"), "--export-markdown", str(options.out / "main.md")]
    return _to_file([*memprof, "compare", *README_COMMAND, *exports, "--force"], options.out / "main.txt") and fine


def _record_sm3(options: argparse.Namespace) -> bool:
    return _to_file([sys.executable, "-m", "tests.gpu.sm3_step"], options.out / "sm3.md")


def _to_file(command: list[str], path: Path) -> bool:
    """Run a command; its output goes to the file as it comes, its complaints to stderr."""
    with path.open("w", encoding="utf-8") as file:
        return subprocess.run(command, stdout=file, check=False).returncode == 0


def _record_histories(options: argparse.Namespace) -> bool:
    recording = Recording(options.out / "histories.json", HISTORIES_SCHEMA, _environment())
    fine = True
    for case in HISTORIES:
        key = " ".join(case)
        if key in recording or case[0] not in options.workload or time.monotonic() > options.until:
            continue
        command = [sys.executable, "-m", "tests.gpu.record", str(options.out), "--one-history", *case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"history {key}: {'recorded' if done.returncode == 0 else done.stderr[-500:]}", file=sys.stderr)
        if done.returncode == 0:
            recording.keep(key, json.loads(done.stdout))
        fine = fine and done.returncode == 0
    return fine


def _history(workload: str, optimizer: str, precision: str) -> Any:
    knobs, batches = WORKLOADS[workload]
    found = bare_history(workload, knobs, optimizer, precision, batches[0])
    return {"workload": workload, "knobs": knobs, "batch_size": batches[0], **found}


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, Mapping[str, Any], int, str]]:
    """Yield the comparisons, so that every workload comes early."""
    for place in (0, 1):
        for precision in PRECISIONS:
            for workload in options.workload:
                knobs, batches = WORKLOADS[workload]
                yield workload, knobs, batches[place], precision


def _record_peaks(options: argparse.Namespace) -> bool:
    import memprof
    from memprof.workers.launcher import Launcher

    recording = Recording(options.out / "peaks.json", PEAKS_SCHEMA, _environment())
    fine = True
    with Launcher() as launcher:
        for workload, knobs, batch_size, precision in _cases(options):
            keys = {name: f"{workload} {precision} b={batch_size} {name}" for name in OPTIMIZERS}
            if all(key in recording for key in keys.values()) or time.monotonic() > options.until:
                continue
            result = memprof.compare(
                workload,
                batch_size=batch_size,
                knobs=knobs,
                optimizers=OPTIMIZERS,
                device="cuda",
                recipe=memprof.Recipe(precision=precision),  # type: ignore[arg-type]  # one of PRECISIONS
                fit=False,
                validate=True,
                launcher=launcher,
                on_comparison=lambda found, keys=keys: _keep(recording, found, keys),
            )
            fine = fine and all(run.status == "ok" for run in result.runs)
            print(f"peaks {workload} {precision} b={batch_size}", file=sys.stderr)
    return fine


def _keep(recording: Recording, found: Any, keys: Mapping[str, str]) -> None:
    """Keep what is complete: a failed run is to be tried again, and one without its prediction is not done yet."""
    for run in found.runs:
        if run.status == "failed" or run.validation is None:
            continue
        recording.keep(
            keys[run.optimizer.spec],
            {
                "workload": found.workload.model_dump(mode="json"),
                "recipe": found.recipe.model_dump(mode="json"),
                "run": run.model_dump(mode="json", exclude=LEFT_OUT),
            },
        )


def _environment() -> dict[str, Any]:
    from memprof.devices.host import describe_environment

    return describe_environment("python -m tests.gpu.record OUT", "cuda:0").model_dump(mode="json")


PARTS = {
    "tests": _record_tests,
    "main": _record_main,
    "sm3": _record_sm3,
    "histories": _record_histories,
    "peaks": _record_peaks,
}

if __name__ == "__main__":
    sys.exit(main())
