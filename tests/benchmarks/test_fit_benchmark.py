"""Evaluations and time of `memprof fit`, for a 7B decoder and for several knobs, against what other finders do.

python -m pytest tests/benchmarks/test_fit_benchmark.py --benchmark-only -s
"""

from __future__ import annotations

import resource
import time
from statistics import mean

import pytest

import memprof
from memprof.documents.fit import FitReport
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS
from memprof.documents.vary import HIGHEST

GPUS = ("rtx-4090", "l40s", "a100-80gb", "h100-80gb", "h200-141gb", "b200-180gb")


def bisection(boundary: int, highest: int = HIGHEST) -> int:
    """Trials of a plain bisection of 1 to 65,536, or another end, by a boundary that is known."""
    fitting, failing, trials = 0, highest + 1, 0
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


@pytest.mark.parametrize(
    ("model", "vary"),
    [
        ("gpt2", "batch_size"),
        ("gpt2", "d_model=96:65472:96"),
        ("gpt2", "n_layers"),
        ("gpt2", "seq_len=64:65536:64"),
        ("bert-large", "batch_size"),
        ("bert-large", "d_model=64:65536:64"),
        ("vit-b16", "batch_size"),
        ("vit-b16", "d_model=192:65472:192"),
        ("resnet50", "batch_size"),
    ],
)
def test_every_knob(benchmark, model: str, vary: str) -> None:  # type: ignore[no-untyped-def]
    """A value of the knob's grid is a trial of the other searches: they are given the divisibility, too."""
    began = time.perf_counter()
    report = memprof.fit(model, vary=vary, optimizers=("sm3", "adam", "sgd"), devices=("rtx-4090", "a100-40gb"))
    answers = [cell.answer for cell in report.cells if cell.answer is not None]
    spent = [len(answer.points) for answer in answers]
    places = [1 + ((answer.value or report.vary.low) - report.vary.low) // report.vary.step for answer in answers]
    last = 1 + (report.vary.last - report.vary.low) // report.vary.step
    others = [mean(bisection(place, last) for place in places), mean(map(doubling, places))]
    print(f"\n{model} {vary}: {mean(spent):.1f} evaluations a cell, {max(spent)} at most; ", end="")
    print(f"plain bisection {others[0]:.1f}, doubling and bisecting {others[1]:.1f}; ", end="")
    print(f"{report.evaluations.predicted} for {len(answers)} cells in {time.perf_counter() - began:.0f} s", end=" ")
    benchmark.pedantic(lambda: None, rounds=1)


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
