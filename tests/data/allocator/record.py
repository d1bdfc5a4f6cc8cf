"""Records what PyTorch's own allocator does on random programs: `python -m tests.data.allocator.record`.

Needs a CUDA build of torch but no GPU; `MEMPROF_CUDA_TORCH` names another Python that has one. Writes histories.json,
where an event is "action address size stream" and the address counts from the first one of its kind of memory.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from memprof.simulation.allocator_driver import RANGES_FROM, SEGMENTS_FROM
from tests.data.allocator.programs import CAPACITY, CONFS, HERE, cuda_python, random_operations, real_allocator

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
LONG = {short: action for action, short in SHORT.items()}


def main() -> None:
    python = cuda_python()
    assert python, "no CUDA build of torch here"
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
        "command": "python -m tests.data.allocator.record",
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
