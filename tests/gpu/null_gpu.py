"""The environment of a GPU that does nothing, for `tests/gpu` on a machine without one.

    eval "$(python -m tests.gpu.null_gpu FOLDER)"; python -m pytest tests/gpu

Needs a CUDA build of torch, with memprof's dependencies, and a C compiler. PyTorch's own CUDA code and caching
allocator run as on a GPU (`tests/data/allocator/null_gpu.c`); its profiler's device side (CUPTI) says that it is not
there. cuDNN, NVML and Triton's driver are missing, and what kernels would compute is left undone.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests import children
from tests.data.allocator.programs import without_gpu

MEMORY = 24 << 30
_ANSWER = "int {name}() {{ return 7; }}"  # CUPTI_ERROR_NOT_INITIALIZED, or any error
_WORDS = 'int {name}(int code, const char **words) {{ *words = "none"; return 0; }}'


def null_gpu(python: str, folder: Path) -> dict[str, str]:
    """Build the stand-ins in an empty folder and return the variables that put them in place."""
    whole = without_gpu(python, folder, MEMORY, null_gpu=True)
    names = ("LD_PRELOAD", "LD_LIBRARY_PATH", "FAKE_CUDA_MEMORY")
    variables = {name: whole[name] for name in names}
    variables["LD_PRELOAD"] += f":{_no_cupti(python, folder)}"
    return variables | {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def _no_cupti(python: str, folder: Path) -> Path:
    """Compile a CUPTI whose every function fails; the real one would look for a driver."""
    ask = "import torch; print(torch.__path__[0])"
    torch = children.run([python, "-c", ask]).stdout.strip()
    symbols = ["nm", "-D", "--undefined-only", f"{torch}/lib/libtorch_cpu.so"]
    lines = children.run(symbols).stdout.splitlines()
    wanted = sorted({line.split()[-1].partition("@")[0] for line in lines if "cupti" in line.lower()})
    source, library = folder / "no_cupti.c", folder / "no_cupti.so"
    forms = {"cuptiGetResultString": _WORDS}
    source.write_text("\n".join(forms.get(name, _ANSWER).format(name=name) for name in wanted) + "\n")
    children.run(["cc", "-w", "-shared", "-fPIC", "-o", library, source])
    return library


def main() -> None:
    """Print the variables as commands of a shell."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in null_gpu(sys.executable, folder).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
