"""Compiles `native.cpp` once per machine and loads it. If that fails, SM3 runs without the native kernel."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import torch

from . import inner

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
)
SECONDS = 60
"""The seconds that a compiler may take: five times what it takes on one quiet core."""

PAUSE = 3600
"""The seconds during which no other process waits for a compiler that has taken too long."""


def cache_folder() -> Path:
    """Return the folder of compiled kernels: `$XDG_CACHE_HOME/sm3`, by default `~/.cache/sm3`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sm3"


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernel, or None if there is no compiler or the compiler fails.

    The kernel is taken from the cache. If it is not there, the system's C++ compiler builds it.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    try:
        built = cache_folder() / f"native-{_key(compiler)}.so"
        if not built.exists():
            _build(compiler, built)
        return ctypes.CDLL(str(built))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def _key(compiler: str) -> str:
    """Return a name for a build that depends on all it was built from, and on the processor it was built for."""
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else [platform.processor()]
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    parts = [SOURCE.read_text(), *_flags(), compiler, platform.platform(), *features, torch.__version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _flags() -> list[str]:
    """Return the compiler's flags. With them a sum of squares is rounded as in PyTorch, and so in `chunked.py`."""
    return [*FLAGS, *(["-DSM3_ROUND_ONCE"] if inner.rounding() == "once" else [])]


def _build(compiler: str, built: Path) -> None:
    late = built.with_suffix(".late")
    if late.exists() and time.time() - late.stat().st_mtime < PAUSE:
        raise RuntimeError("the compiler took too long")
    built.parent.mkdir(parents=True, exist_ok=True)
    try:
        _compile(compiler, built)
    except subprocess.TimeoutExpired:
        late.touch()
        raise


def _compile(compiler: str, built: Path) -> None:
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        part, whole = Path(folder, "native.o"), Path(folder, "native.so")
        _run(compiler, *_flags(), "-fopenmp", "-c", str(SOURCE), "-o", str(part))
        _run(compiler, "-shared", str(part), "-o", str(whole), *_openmp())
        os.replace(whole, built)


def _openmp() -> list[str]:
    """Return the linker's flags for OpenMP: PyTorch's own copy if it has one, as two would compete for the cores."""
    for found in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        return [str(found)]
    return ["-fopenmp"]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
