"""A prediction for the CPU against the measured run: tensors, state and categories to the byte.

The allocator's peak may differ by what kernels take for themselves. In float32 outside convolutions that is the few
bytes of a Python number; oneDNN's copies for convolutions and for matrix products in half precision are not predicted.
"""

from __future__ import annotations

import pytest

from memprof.optimizers.spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.results import Run
from memprof.simulation.predict import predict_runs
from memprof.simulation.target import Target
from memprof.training.launcher import Launcher
from memprof.training.recipe import Recipe
from memprof.workloads.spec import WorkloadSpec
from tests.accuracy.test_contract import RECIPES, SMALL, run_trial

WITH_CONVOLUTIONS = ("resnet50", "vit-b16")
WITH_ONEDNN_PRODUCTS = ("bf16", "amp-bf16", "amp-fp16")
FEW = {"gpt2": ("adam", "sm3", "adafactor"), "resnet50": ("adam",), "bert-large": ("sm3",)}


def predicted(workload: str, optimizers: tuple[str, ...], recipe: Recipe) -> list[Run]:
    specs = [parse_optimizer(text) for text in optimizers]
    return predict_runs(WorkloadSpec(model=workload, knobs=SMALL[workload]), specs, recipe, 2, Target())


def check_against(prediction: Run, measured: Run, allocator_known: bool) -> None:
    assert prediction.source == "predicted"
    assert prediction.status == measured.status == "ok"
    assert prediction.optimizer == measured.optimizer
    assert prediction.parameters == measured.parameters
    assert prediction.state == measured.state
    tensors = {phase: peak.tensor_bytes for phase, peak in prediction.phases.items()}
    assert tensors == {phase: peak.tensor_bytes for phase, peak in measured.phases.items()}
    assert prediction.peak.tensor_bytes == measured.peak.tensor_bytes
    assert prediction.peak.allocated_bytes <= measured.peak.allocated_bytes
    assert prediction.peak.process_bytes is None
    if allocator_known:
        assert prediction.peak.allocated_bytes == pytest.approx(measured.peak.allocated_bytes, rel=0.001)
        assert prediction.peak.phase == measured.peak.phase
        check_breakdown(prediction, measured)


def check_breakdown(prediction: Run, measured: Run) -> None:
    ours, theirs = prediction.breakdown.by_category, measured.breakdown.by_category
    few = prediction.peak.allocated_bytes * 0.001
    for category in {*ours, *theirs}:
        difference = abs(ours.get(category, 0) - theirs.get(category, 0))
        assert difference <= (few if category in ("temporaries", "unattributed") else 0), category


@pytest.mark.parametrize("workload", SMALL)
def test_every_workload_with_every_default_optimizer(launcher: Launcher, workload: str) -> None:
    for optimizer, prediction in zip(
        DEFAULT_OPTIMIZERS, predicted(workload, DEFAULT_OPTIMIZERS, Recipe()), strict=True
    ):
        measured = run_trial(launcher, workload, optimizer)
        check_against(prediction, measured, allocator_known=workload not in WITH_CONVOLUTIONS)


# resnet50 in float16 overflows on the CPU, so that its first steps are skipped: values decide, not memory.
CASES = [(workload, recipe) for workload in FEW for recipe in RECIPES if (workload, recipe) != ("resnet50", "amp-fp16")]


@pytest.mark.parametrize(("workload", "recipe"), CASES)
def test_every_recipe(launcher: Launcher, workload: str, recipe: str) -> None:
    optimizers = FEW[workload]
    for optimizer, prediction in zip(optimizers, predicted(workload, optimizers, RECIPES[recipe]), strict=True):
        measured = run_trial(launcher, workload, optimizer, RECIPES[recipe])
        known = workload not in WITH_CONVOLUTIONS and recipe not in WITH_ONEDNN_PRODUCTS
        check_against(prediction, measured, allocator_known=known)
