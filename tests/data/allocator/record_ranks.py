"""Records the allocator's peaks of ranks under DDP and FSDP2, trained with PyTorch's CUDA code: run as a module.

Needs what `record_models` needs. Writes ranks.json; the GPU is said to be an A100.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from tests.data.allocator.programs import HERE, cuda_python, without_gpu
from tests.data.allocator.record_models import CAPACITY, write

COMMAND = "python -m tests.data.allocator.record_ranks"
FILE = HERE / "ranks.json"


def main() -> None:
    python = cuda_python()
    assert python, "no CUDA build of torch here"
    with tempfile.TemporaryDirectory() as folder:
        environment = without_gpu(python, Path(folder), capacity=CAPACITY, null_gpu=True)
        module = [python, "-m", "tests.data.allocator.real_ranks"]
        done = subprocess.run(module, env=environment, check=True, capture_output=True, text=True)
    write(json.loads(done.stdout.splitlines()[-1]), FILE, COMMAND)


if __name__ == "__main__":
    main()
