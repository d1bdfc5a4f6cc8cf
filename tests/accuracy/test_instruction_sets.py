"""Predictions and attribution are exact whichever kernels run: those of other processors, as far as this one has them.

Each setting is a process of its own, for ATen and oneDNN read theirs once. `MEMPROF_EVERYTHING=1 pytest tests/accuracy`
under the same variables tries every model, recipe and optimizer.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from memprof.documents.jobs import Trial
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.measurement.trial import run_trial
from tests import children
from tests.accuracy.test_contract import check_contract
from tests.accuracy.test_prediction_cpu import check_against, predicted
from tests.small_workloads import SMALL

ROOT = Path(__file__).parents[2]
# Half-precision products, gathers and norms; convolutions, and what checkpointing keeps outside of operators.
TRAININGS = {
    "bert-large": ("sm3", Recipe(precision="bf16")),
    "vit-b16": ("sgd", Recipe(precision="amp-bf16", checkpoint_activations=True)),
}
# Least that the processor must have, what ATen is told, what oneDNN is told, threads.
SETTINGS = [
    ("DEFAULT", "default", "SSE41", 1),
    ("AVX2", "avx2", "AVX2", 2),
    ("AVX2", "avx2", "SSE41", 4),
    ("AVX512", "avx512", "AVX512_CORE", 2),
    ("AVX512", "avx2", "AVX512_CORE_AMX", 1),
]
_LEVELS = ("DEFAULT", "AVX2", "AVX512")  # of `torch.backends.cpu.get_cpu_capability()` on x86-64


@pytest.mark.parametrize(("least", "aten", "onednn", "threads"), SETTINGS)
def test_exact_under(least: str, aten: str, onednn: str, threads: int) -> None:
    here = _capability_here()
    if here not in _LEVELS or _LEVELS.index(here) < _LEVELS.index(least):
        pytest.skip(f"this processor has {here}, not {least}")
    chosen = {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn}
    code = f"from {__name__} import check_trainings; check_trainings({aten.upper()!r}, {threads})"
    done = _run(code, {**os.environ, **chosen})
    assert done.returncode == 0, done.stderr[-3000:]


def check_trainings(capability: str, threads: int) -> None:
    """Train each as a trial does and compare; called in a process with a setting."""
    assert torch.backends.cpu.get_cpu_capability() == capability
    torch.set_num_threads(threads)
    for workload, (optimizer, recipe) in TRAININGS.items():
        (prediction,) = predicted(workload, (optimizer,), recipe)
        trial = Trial(
            workload=WorkloadSpec(model=workload, knobs=SMALL[workload]),
            optimizer=parse_optimizer(optimizer),
            device="cpu",
            batch_size=2,
            recipe=recipe,
        )
        measured = run_trial(trial, lambda step: None).run
        check_contract(measured)
        check_against(prediction, measured)


@cache
def _capability_here() -> str:
    """Return what ATen would use if nobody told it."""
    env = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    return _run("import torch; print(torch.backends.cpu.get_cpu_capability())", env).stdout.strip()


def _run(code: str, env: dict[str, str]) -> children.Done:
    command = [sys.executable, "-c", code]
    return children.run(command, cwd=ROOT, env=env, check=False)
