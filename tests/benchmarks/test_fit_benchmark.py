"""Evaluations and time of `memprof fit` for a 7B decoder, against the searches that other finders do.

python -m pytest tests/benchmarks/test_fit_benchmark.py --benchmark-enable -s
"""

from __future__ import annotations

import resource
import time

import memprof
from memprof.fitting.document import FitReport
from memprof.fitting.vary import HIGHEST
from memprof.optimizers.spec import DEFAULT_OPTIMIZERS

GPUS = ("rtx-4090", "l40s", "a100-80gb", "h100-80gb", "h200-141gb", "b200-180gb")


def bisection(boundary: int) -> int:
    """Trials of a plain bisection of 1 to 65,536, by a boundary that is known."""
    fitting, failing, trials = 0, HIGHEST + 1, 0
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        trials += 1
        fitting, failing = (middle, failing) if middle <= boundary else (fitting, middle)
    return trials


def doubling(boundary: int) -> int:
    """Trials of doubling from 2 until memory runs out, then bisecting: Lightning's `binsearch` mode."""
    value, trials = 2, 1
    while value <= boundary:
        value, trials = 2 * value, trials + 1
    fitting, failing = value // 2 if value > 2 else 0, value
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        trials += 1
        fitting, failing = (middle, failing) if middle <= boundary else (fitting, middle)
    return trials


def largest(report: FitReport) -> list[int]:
    return [cell.answer.value or 0 for cell in report.cells if cell.answer is not None]


def test_other_searches_are_counted_right() -> None:
    assert [bisection(value) for value in (0, 1, 16, HIGHEST)] == [16, 16, 16, 17]
    assert [doubling(value) for value in (0, 1, 2, 3, 16)] == [2, 2, 3, 3, 9]


def test_six_optimizers_on_six_gpus_for_a_7b_decoder(benchmark) -> None:  # type: ignore[no-untyped-def]
    options = {"optimizers": DEFAULT_OPTIMIZERS, "devices": GPUS, "knobs": {"size": "7b"}}
    began, spent = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    report = memprof.fit("llama", recipe=memprof.Recipe(precision="bf16"), **options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = largest(report)
    processor = after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime
    print(f"\n{len(found)} cells in {time.perf_counter() - began:.0f} s, {processor:.0f} s of processor time;", end=" ")
    print(f"the largest process had {after.ru_maxrss >> 10} MiB resident")
    print(f"evaluations: {report.evaluations.predicted}; plain bisection {sum(map(bisection, found))}, ", end="")
    print(f"doubling and bisecting {sum(map(doubling, found))}")
    benchmark.pedantic(lambda: None, rounds=1)
