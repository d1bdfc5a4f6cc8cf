"""Records the allocator's peaks of small built-in workloads, trained with PyTorch's CUDA code: run as a module.

Needs a CUDA build of torch (and memprof's dependencies) but no GPU; `MEMPROF_CUDA_TORCH` names another Python that has
them. Writes models.json; the GPU is said to be an A100.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from tests.data.allocator.programs import HERE, cuda_python, without_gpu

COMMAND = "python -m tests.data.allocator.record_models"
CAPACITY = 40 * 2**30
FILE = HERE / "models.json"


def main() -> None:
    record("real_models", FILE, COMMAND)


def record(module: str, file: Path, command: str) -> None:
    """Run a module of this folder with PyTorch's CUDA code, and write what its last line says."""
    python = cuda_python()
    assert python, "no CUDA build of torch here"
    with tempfile.TemporaryDirectory() as folder:
        environment = without_gpu(python, Path(folder), capacity=CAPACITY, null_gpu=True)
        arguments = [python, "-m", f"tests.data.allocator.{module}"]
        done = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True)
    write(json.loads(done.stdout.splitlines()[-1]), file, command)


def write(answer: dict[str, object], file: Path, command: str) -> None:
    runs = answer.pop("runs")
    assert isinstance(runs, list)
    rows = ",\n".join(json.dumps(list(run.values())) for run in runs)
    head = json.dumps({"command": command, **answer, "columns": list(runs[0])})
    file.write_text(f'{head[:-1]}, "runs": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
