"""Random programs for the allocator, and PyTorch's own allocator to run them."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import children

HERE = Path(__file__).parent
MIB = 2**20
CAPACITY = 2**30

CONFS = (
    "",
    "max_split_size_mb:21",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[1:8,16:2,>:0]",
    "large_segment_size_mb:30",
    "garbage_collection_threshold:0.5",
    "garbage_collection_threshold:0.3,max_split_size_mb:40",
    "expandable_segments:True",
    "expandable_segments:True,large_segment_size_mb:30,max_split_size_mb:40",
    "expandable_segments:True,roundup_power2_divisions:8,garbage_collection_threshold:0.4",
    "max_split_size_mb:40,max_non_split_rounding_mb:60",  # last, since older versions cannot take the second one back
)
Operation = list[Any]


def random_operations(seed: int | str, length: int) -> list[Operation]:
    """Return operations as `real_allocator.py` takes them; a fifth of the blocks is used on a second stream."""
    source = random.Random(seed)
    operations: list[Operation] = []
    live: list[int] = []
    largest = source.choice([40 * MIB, 200 * MIB])
    for number in range(length):
        choice = source.random()
        if live and choice < 0.42:
            operations.append(["free", live.pop(source.randrange(len(live)))])
        elif live and choice < 0.47:
            operations.append(["touch", source.choice(live)])
        elif live and choice < 0.5:
            operations.append(["wait"])
        elif choice > 0.99:
            operations.append(["empty"])
        else:
            operations.append(["alloc", _size(source, largest), source.choice([0, 0, 0, 1])])
            live.append(number)
    return operations


def _size(source: random.Random, largest: int) -> int:
    low, high = source.choice([(1, 2000), (1, MIB), (MIB, 10 * MIB), (MIB, 10 * MIB), (10 * MIB, largest)])
    edges = [512, 513, MIB, MIB + 1, 2 * MIB, 10 * MIB - 1, 10 * MIB, 20 * MIB, 8_519_680]
    return source.choice(edges) if source.random() < 0.1 else source.randint(low, high)


def cuda_python() -> str | None:
    """Return a Python that has a CUDA build of torch: this one, or `$MEMPROF_CUDA_TORCH`; None without."""
    python = os.environ.get("MEMPROF_CUDA_TORCH", sys.executable)
    if sys.platform != "linux" or shutil.which("cc") is None:
        return None
    asked = children.run([python, "-c", "import torch; print(torch.version.cuda)"], check=False)
    return python if asked.returncode == 0 and asked.stdout.strip() != "None" else None


def without_gpu(python: str, folder: Path, capacity: int = CAPACITY, null_gpu: bool = False) -> dict[str, str]:
    """Build the stand-ins for CUDA in a folder and return the environment in which that Python takes them for it.

    Args:
        python: with a CUDA build of torch.
        folder: an empty one.
        capacity: bytes of device memory.
        null_gpu: kernels can be launched as well, and do nothing; needs the CUDA headers that come with torch.
    """
    stand_in = folder / "fake_cuda.so"
    compiler = ["cc", "-w", "-shared", "-fPIC", "-O1", "-o"]
    children.run([*compiler, stand_in, HERE / "fake_cuda.c"])
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        shutil.copy(stand_in, folder / name)
    preloaded = [str(stand_in)]
    if null_gpu:
        ask = "import torch; print(torch.__path__[0])"
        torch = Path(children.run([python, "-c", ask]).stdout.strip())
        headers = ("nvidia/cu13/include", "nvidia/cuda_runtime/include", "triton/backends/nvidia/include")
        include = [f"-I{torch.parent / path}" for path in headers]
        children.run([*compiler, folder / "null_gpu.so", HERE / "null_gpu.c", *include])
        children.run([*compiler, folder / "libcuda.so.1", HERE / "fake_cuda.c", "-DNULL_GPU"])
        preloaded.insert(0, str(folder / "null_gpu.so"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTORCH_")}
    return environment | {
        "LD_PRELOAD": ":".join(preloaded),
        "LD_LIBRARY_PATH": str(folder),
        "FAKE_CUDA_MEMORY": str(capacity),
    }


@contextmanager
def real_allocator(python: str, folder: Path, capacity: int = CAPACITY) -> Iterator[Any]:
    """Yield a function that runs a program ({"conf", "fraction", "ops"}) on PyTorch's own allocator."""
    environment = without_gpu(python, folder, capacity)
    command = [python, str(HERE / "real_allocator.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with children.started(command, env=environment, **pipes) as process:

        def run(program: dict[str, Any]) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(program) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
