"""Records what PyTorch's CUDA code allocates for each operator case: run as a module, once for each CUDA build.

Needs a CUDA build of torch but no GPU (`programs.without_gpu`); `MEMPROF_CUDA_TORCH` names another Python that has
one. Adds its part to operators.json: for every case each history with the "version capability" it was seen on.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.data.allocator.operator_cases import cases
from tests.data.allocator.programs import HERE, cuda_python, without_gpu

COMMAND = "python -m tests.data.allocator.record_operators"
MULTIPROCESSORS = {"75": 40, "80": 108, "86": 28, "90": 132}  # Tesla T4, A100, RTX 3060, H100
FILE = HERE / "operators.json"


def main() -> None:
    python = cuda_python()
    assert python, "no CUDA build of torch here"
    document = json.loads(FILE.read_text()) if FILE.exists() else {"command": COMMAND, "cases": {}}
    for capability in MULTIPROCESSORS:
        add(document, run(python, capability))
    FILE.write_text(json.dumps(document, indent=0) + "\n")


def run(python: str, capability: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        environment = without_gpu(python, Path(folder), capacity=2**36, null_gpu=True)
        environment |= {"NULL_GPU_CAPABILITY": capability, "NULL_GPU_SMS": str(MULTIPROCESSORS[capability])}
        command = [python, str(HERE / "real_operators.py")]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def add(document: dict[str, Any], answer: dict[str, Any]) -> None:
    place = f"{answer['torch']} {answer['capability']}"
    for histories in document["cases"].values():
        for history, places in list(histories.items()):
            histories[history] = [other for other in places if other != place]
            if not histories[history]:
                del histories[history]
    document["cases"] = {name: histories for name, histories in document["cases"].items() if name in cases()}
    for name, history in answer["cases"].items():
        if history is not None and name in cases():
            document["cases"].setdefault(name, {}).setdefault(history, []).append(place)


if __name__ == "__main__":
    main()
