"""Step time and extra memory of SM3 and its peers on a CUDA device: `python -m tests.gpu.sm3_step` prints a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Adafactor, Adagrad, Adam

from sm3 import SM3

MIB = 2**20
ROUNDS = 30
Make = Callable[[list[nn.Parameter]], Any]
OPTIMIZERS: dict[str, Make] = {
    "SM3 (triton)": lambda p: SM3(p, kernel="triton"),
    "SM3 (triton), momentum 0.9": lambda p: SM3(p, kernel="triton", momentum=0.9),
    "SM3 (chunked)": lambda p: SM3(p, kernel="chunked"),
    "Adam (foreach)": lambda p: Adam(p, foreach=True),
    "Adam (fused)": lambda p: Adam(p, fused=True),
    "Adagrad (foreach)": lambda p: Adagrad(p, foreach=True),
    "Adafactor (foreach)": lambda p: Adafactor(p, foreach=True),
}


def shapes(layers: int = 12, width: int = 768) -> dict[str, list[tuple[int, ...]]]:
    """Return the parameters to step on: one matrix, and GPT-2's."""
    norm: list[tuple[int, ...]] = [(width,), (width,)]
    block = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    gpt2 = [(50257, width), (1024, width), *layers * [*norm, *norm, *block], *norm]
    return {"one 8192 x 8192 tensor": [(8192, 8192)], "GPT-2, 124.4 M": gpt2}


def measure(make: Make, sizes: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """Return the median milliseconds of a step, by CUDA events, and the extra bytes that a step holds."""
    params = [nn.Parameter(torch.randn(size, device="cuda")) for size in sizes]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = make(params)
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    times = [_milliseconds(optimizer) for _ in range(ROUNDS)]
    extra = torch.cuda.max_memory_allocated() - held
    return {"median_ms": statistics.median(times), "min_ms": min(times), "extra_bytes": extra}


def _milliseconds(optimizer: Any) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    optimizer.step()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def main() -> None:
    """Measure and print, one line as soon as it is known; a failing peer is a line of its own."""
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(0)}, median of {ROUNDS} steps, float32\n")
    for title, sizes in shapes().items():
        print(f"\n{title}\n\n| optimizer | step | fastest | extra memory of step() |\n|---|--:|--:|--:|", flush=True)
        for name, make in OPTIMIZERS.items():
            try:
                found = measure(make, sizes)
            except Exception as error:
                print(f"| {name} | failed: {type(error).__name__}: {str(error).splitlines()[0]} | | |", flush=True)
                continue
            extra = found["extra_bytes"] / MIB
            print(f"| {name} | {found['median_ms']:.3f} ms | {found['min_ms']:.3f} ms | {extra:.2f} MiB |", flush=True)


if __name__ == "__main__":
    main()
