"""Comparisons built by hand for tests: round figures, nothing measured."""

from __future__ import annotations

from typing import Any

from memprof.documents.comparison import (
    Breakdown,
    Capacity,
    Comparison,
    Environment,
    Fit,
    FitAnswer,
    FitPoint,
    OptimizerInfo,
    Parameters,
    Peak,
    PhasePeak,
    Run,
    State,
    Steps,
    WorkloadInfo,
)
from memprof.documents.recipe import Recipe

MIB = 2**20
GIB = 2**30
COUNT = 124_439_808


def make_environment(**changes: Any) -> Environment:
    values: dict[str, Any] = {
        "memprof": "0.1.0",
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "processor": "A CPU",
        "cores": 2,
        "threads": 2,
        "memory_bytes": 24 * GIB,
        "torch": "2.13.0+cpu",
        "command": "memprof compare gpt2 -b 2 --set seq_len=128",
        "date": "2026-01-02T03:04:05+00:00",
    }
    return Environment(**{**values, **changes})


def make_answer(knob: str, value: int | None, **changes: Any) -> FitAnswer:
    values: dict[str, Any] = {
        "knob": knob,
        "value": value,
        "peak_bytes": 23 * GIB,
        "next_value": None if value is None else value + 1,
        "next_peak_bytes": 25 * GIB,
        "phase": "backward",
        "method": "extrapolated",
        "points": [FitPoint(value=1, peak_bytes=GIB), FitPoint(value=2, peak_bytes=None)],
    }
    return FitAnswer(**{**values, **changes})


def make_breakdown(state: int, activations: int, phase: str = "backward") -> Breakdown:
    weights = 4 * COUNT
    categories = {
        "parameters": weights,
        "gradients": weights,
        "optimizer_state": state,
        "activations": activations,
        "temporaries": 3 * MIB,
        "inputs": 4096,
        "unattributed": 512,
    }
    total = sum(categories.values())
    modules = {"transformer.wte": total // 2, "": total - total // 2}
    return Breakdown(total_bytes=total, phase=phase, by_category=categories, by_module=modules)


def make_run(spec: str, state: int, *, activations: int = 200 * MIB, batch: int | None = 52, **changes: Any) -> Run:
    breakdown = make_breakdown(state, activations)
    peak = breakdown.total_bytes
    name, _, options = spec.partition(",")
    values: dict[str, Any] = {
        "optimizer": OptimizerInfo(
            spec=spec, name=name, options={"momentum": 0.9} if options else {}, implementation="foreach"
        ),
        "device": "cpu",
        "status": "ok",
        "parameters": Parameters(count=COUNT, trainable=COUNT, bytes=4 * COUNT),
        "state": State(
            bytes=state,
            bytes_per_parameter=state / COUNT,
            by_dtype={"float32": state},
            by_device={"cpu": state},
        ),
        "peak": Peak(
            tensor_bytes=peak - 3 * MIB,
            allocated_bytes=peak,
            process_bytes=peak + 300 * MIB,
            phase="backward",
            step=2,
        ),
        "breakdown": breakdown,
        "phases": {
            "forward": PhasePeak(allocated_bytes=peak - 100 * MIB),
            "backward": PhasePeak(allocated_bytes=peak, tensor_bytes=peak - 3 * MIB),
            "optimizer": PhasePeak(allocated_bytes=peak - 50 * MIB),
        },
        "steps": Steps(seconds=[0.8, 0.9, 1.0], losses=[10.9, 10.8, 10.75, 10.7], allocated_bytes=[peak, peak, peak]),
        "fit": Fit(
            batch_size=make_answer("batch_size", batch),
            model=make_answer("n_layer", 48, parameters=354_000_000),
        ),
        "notes": ["the CPU has no caching allocator: nothing is reserved"],
    }
    return Run(**{**values, **changes})


def make_broken_run(spec: str, status: str, reason: str | None) -> Run:
    return Run.model_validate(
        {"optimizer": {"spec": spec, "name": spec}, "device": "cpu", "status": status, "reason": reason}
    )


def make_comparison(*runs: Run, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "environment": make_environment(),
        "workload": WorkloadInfo(
            model="gpt2", name="gpt2", knobs={"seq_len": 128, "n_layer": 12}, batch_size=2, scale="n_layer"
        ),
        "recipe": Recipe(),
        "capacity": Capacity(bytes=24 * GIB, source="device"),
        "reference": "adam",
        "runs": list(runs or default_runs()),
    }
    return Comparison(**{**values, **changes})


def default_runs() -> list[Run]:
    return [
        make_run("sm3", 1_257_472, batch=61),
        make_run("sm3,momentum=0.9", 4 * COUNT + 1_257_472, batch=56),
        make_run("adam", 8 * COUNT),
        make_run("adagrad", 4 * COUNT, batch=56),
        make_run("adafactor", 2 * MIB, batch=61),
        make_run("sgd", 0, batch=61),
    ]
