"""Records what PyTorch's own allocator does on random programs and in training: run as a module.

Needs a CUDA build of torch but no GPU; `MEMPROF_CUDA_TORCH` names another Python that has one. Writes histories.json
and training.json, where an event is "action address size stream" and the address counts from the first of its kind.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from memprof.allocator.driver import RANGES_FROM, SEGMENTS_FROM
from tests.data.allocator.programs import (
    CAPACITY,
    CONFS,
    HERE,
    cuda_python,
    random_operations,
    real_allocator,
    without_gpu,
)

SHORT = {
    "alloc": "a",
    "free_requested": "f",
    "free_completed": "c",
    "segment_alloc": "+",
    "segment_free": "-",
    "segment_map": "m",
    "segment_unmap": "u",
    "oom": "!",
}
COMMAND = "python -m tests.data.allocator.record"
LONG = {short: action for action, short in SHORT.items()}


def main() -> None:
    python = cuda_python()
    assert python, "no CUDA build of torch here"
    record_programs(python)
    record_training(python)


def record_training(python: str) -> None:
    runs = []
    for conf in ("", "expandable_segments:True"):
        for precision in ("fp32", "bf16"):
            with tempfile.TemporaryDirectory() as folder:
                environment = without_gpu(python, Path(folder), null_gpu=True) | {"PYTORCH_CUDA_ALLOC_CONF": conf}
                command = [python, str(HERE / "real_training.py"), precision]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            answer = json.loads(done.stdout)
            fields = ("action", "addr", "size")
            events = [pack({**dict(zip(fields, one, strict=True)), "stream": 0}) for one in answer.pop("history")]
            runs.append({"conf": conf, "precision": precision, **answer, "events": events})
    document = {"command": COMMAND, "capacity": CAPACITY, "runs": runs}
    (HERE / "training.json").write_text(json.dumps(document, indent=0) + "\n")


def record_programs(python: str) -> None:
    programs = []
    for fraction in (None, 0.7):  # once a fraction is set, it stays
        with tempfile.TemporaryDirectory() as folder, real_allocator(python, Path(folder)) as run:
            for conf in CONFS:
                program = {"conf": conf, "fraction": fraction, "ops": random_operations(f"{conf} {fraction}", 250)}
                answer = run(program)
                events = [pack(event) for event in answer["history"]]
                programs.append({"conf": conf, "fraction": fraction, "events": events})
                programs[-1] |= {"stats": answer["stats"], "emptied": answer["emptied"]}
    document = {
        "command": COMMAND,
        "torch": answer["torch"],
        "capacity": CAPACITY,
        "programs": programs,
    }
    (HERE / "histories.json").write_text(json.dumps(document, indent=0) + "\n")


def pack(event: dict[str, Any]) -> str:
    address = 0 if event["action"] == "oom" else event["addr"]
    kind = "r" if address >= RANGES_FROM else "s"
    offset = address - (RANGES_FROM if kind == "r" else SEGMENTS_FROM) if address else 0
    return f"{SHORT[event['action']]} {kind}{offset:x} {event['size']} {event['stream']}"


def unpack(text: str) -> dict[str, Any]:
    action, place, size, stream = text.split()
    base = RANGES_FROM if place[0] == "r" else SEGMENTS_FROM
    return {"action": LONG[action], "addr": base + int(place[1:], 16), "size": int(size), "stream": int(stream)}


if __name__ == "__main__":
    main()
