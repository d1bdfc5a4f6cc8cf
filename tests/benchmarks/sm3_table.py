"""Print the table of step time, extra memory and state: `PYTHONPATH=. python tests/benchmarks/sm3_table.py`.

Float32 on the CPU. Ratios are to Adam's for-loop and to fused Adam of the same run. `--rounds N`: best of N, in
turns. `--one-thread` takes the processor time of a single thread, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import torch
from sm3_peers import gpt2, matrix, optimizers, parameters, seconds, state_bytes

from tests.step_memory import peak_bytes

MIB = 2**20


def rows(shapes: list[tuple[int, ...]], rounds: int, clock: Callable[[], float]) -> dict[str, tuple[float, int, int]]:
    """Return seconds, extra bytes and state bytes of each optimizer on the same parameters of these shapes."""
    params = parameters(shapes)
    contenders = {name: make(params) for name, make in optimizers().items()}
    shortest = seconds(contenders, rounds, clock)
    return {
        name: (shortest[name], peak_bytes(optimizer.step), state_bytes(optimizer))
        for name, optimizer in contenders.items()
    }


def table(title: str, measured: dict[str, tuple[float, int, int]]) -> str:
    """Return a Markdown table."""
    loop, fused = measured["Adam (for-loop)"][0], measured["Adam (fused)"][0]
    lines = [
        f"\n{title}\n",
        "| optimizer | step | x Adam for-loop | x Adam fused | extra memory of step() | state |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, (shortest, extra, state) in measured.items():
        lines.append(
            f"| {name} | {shortest * 1e3:.1f} ms | {shortest / loop:.2f} | {shortest / fused:.2f} "
            f"| {extra / MIB:.2f} MiB | {state / MIB:.2f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--one-thread", action="store_true")
    options = arguments.parse_args()
    rounds, clock = options.rounds, time.process_time if options.one_thread else time.perf_counter
    if options.one_thread:
        torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}, best of {rounds} rounds"
    )
    for title, shapes in (("One 4096 x 4096 tensor", matrix()), ("GPT-2, 148 tensors, 124.4 M", gpt2())):
        print(table(title, rows(shapes, rounds, clock)), flush=True)


if __name__ == "__main__":
    main()
