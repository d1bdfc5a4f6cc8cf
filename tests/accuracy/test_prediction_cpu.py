"""A prediction for the CPU against the measured run: tensors, state, categories and the allocator's peaks to the byte.

What oneDNN and other kernels take for themselves is predicted by asking them, so the prediction and the trial need the
same number of threads.

Of every workload and recipe one optimizer has its turn; `MEMPROF_EVERYTHING=1` runs all six, 414 trainings.
"""

from __future__ import annotations

import os

import pytest

from memprof.devices.target import Target
from memprof.documents.comparison import Run
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.run import predict_runs
from memprof.workers.launcher import Launcher
from tests.accuracy.test_contract import RECIPES, run_trial
from tests.small_workloads import SMALL

NUMBERS = 16  # bytes that autograd keeps of numbers that tensors are multiplied by: two in transformer-big
WITH_CONVOLUTIONS = ("resnet50", "vit-b16")  # a gradient made early in a convolution's backward counts as a temporary
# Every workload with an optimizer or more, of which each has its turn.
FEW = {
    "mlp": ("adafactor",),
    "gpt2": ("adam",),
    "bert-large": ("sm3",),
    "transformer-big": ("sgd",),
    "resnet50": ("adam",),
    "vit-b16": ("sm3,momentum=0.9",),
    "llama": ("adagrad",),
}


def predicted(workload: str, optimizers: tuple[str, ...], recipe: Recipe) -> list[Run]:
    specs = [parse_optimizer(text) for text in optimizers]
    return predict_runs(WorkloadSpec(model=workload, knobs=SMALL[workload]), specs, recipe, 2, Target())


def check_against(prediction: Run, measured: Run) -> None:
    assert prediction.source == "predicted"
    assert prediction.status == measured.status == "ok"
    assert prediction.optimizer == measured.optimizer
    assert prediction.parameters == measured.parameters
    assert prediction.state == measured.state
    tensors = {phase: peak.tensor_bytes for phase, peak in prediction.phases.items()}
    assert tensors == {phase: peak.tensor_bytes for phase, peak in measured.phases.items()}
    assert prediction.peak.tensor_bytes == measured.peak.tensor_bytes
    assert prediction.peak.process_bytes is None
    assert prediction.peak.phase == measured.peak.phase
    assert prediction.peak.allocated_bytes == pytest.approx(measured.peak.allocated_bytes, abs=NUMBERS)
    for phase, peak in measured.phases.items():
        assert prediction.phases[phase].allocated_bytes == pytest.approx(peak.allocated_bytes, abs=NUMBERS), phase
    assert prediction.confidence is not None
    assert not any("kernels" in warning for warning in prediction.confidence.warnings)


def check_breakdown(prediction: Run, measured: Run) -> None:
    ours, theirs = prediction.breakdown.by_category, measured.breakdown.by_category
    for category in {*ours, *theirs}:
        assert abs(ours.get(category, 0) - theirs.get(category, 0)) <= NUMBERS, category


@pytest.mark.parametrize("workload", SMALL)
def test_every_workload_with_every_default_optimizer(launcher: Launcher, workload: str) -> None:
    for optimizer, prediction in zip(
        DEFAULT_OPTIMIZERS, predicted(workload, DEFAULT_OPTIMIZERS, Recipe()), strict=True
    ):
        measured = run_trial(launcher, workload, optimizer)
        check_against(prediction, measured)
        if workload not in WITH_CONVOLUTIONS:
            check_breakdown(prediction, measured)


# resnet50's gradients in float16 overflow on the CPU, so that the scaler skips the first six steps: values decide when
# there is a state. From the eighth step on its peak with Adam is as predicted, but for 12 bytes (measured, 13 s).
CASES = [(workload, recipe) for workload in FEW for recipe in RECIPES if (workload, recipe) != ("resnet50", "amp-fp16")]


@pytest.mark.parametrize(("workload", "recipe"), CASES)
def test_every_recipe(launcher: Launcher, workload: str, recipe: str) -> None:
    optimizers = DEFAULT_OPTIMIZERS if "MEMPROF_EVERYTHING" in os.environ else FEW[workload]
    for optimizer, prediction in zip(optimizers, predicted(workload, optimizers, RECIPES[recipe]), strict=True):
        measured = run_trial(launcher, workload, optimizer, RECIPES[recipe])
        check_against(prediction, measured)
        if workload not in WITH_CONVOLUTIONS:
            check_breakdown(prediction, measured)
