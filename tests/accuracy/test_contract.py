"""The contract that every workload, optimizer and recipe keeps: what must be true of any measured run."""

from __future__ import annotations

from functools import cache

import pytest

from memprof.documents.comparison import CATEGORIES, Run
from memprof.documents.jobs import Outcome, Trial
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.workers.launcher import Launcher
from tests.small_workloads import SMALL

PLAIN = Recipe()
RECIPES = {
    "bf16": Recipe(precision="bf16"),
    "amp-bf16": Recipe(precision="amp-bf16"),
    "amp-fp16": Recipe(precision="amp-fp16"),
    "accumulate": Recipe(accumulate=2),
    "checkpoint": Recipe(checkpoint_activations=True),
    "clip": Recipe(clip_grad=1.0),
    "zero-start": Recipe(zero_grad="start"),
    "zero-before-backward": Recipe(zero_grad="before-backward"),
    "step-in-backward": Recipe(step_in_backward=True),
}


@cache  # the tests of predictions compare with the same trainings
def run_trial(launcher: Launcher, workload: str, optimizer: str, recipe: Recipe = PLAIN) -> Run:
    trial = Trial(
        workload=WorkloadSpec(model=workload, knobs=SMALL[workload]),
        optimizer=parse_optimizer(optimizer),
        device="cpu",
        batch_size=2,
        recipe=recipe,
    )
    outcome = launcher.run(trial)
    assert isinstance(outcome, Outcome)
    return outcome.run


def check_contract(run: Run) -> None:
    assert run.status == "ok", run.reason
    assert run.source == "measured"
    peak, breakdown = run.peak, run.breakdown
    # Both maps of the breakdown account for every byte, and nothing is left unexplained.
    assert sum(breakdown.by_category.values()) == breakdown.total_bytes == sum(breakdown.by_module.values())
    table = breakdown.by_category_and_module
    assert {category: sum(modules.values()) for category, modules in table.items()} == breakdown.by_category
    assert set(breakdown.by_category) <= set(CATEGORIES)
    assert breakdown.by_category.get("unattributed", 0) == 0
    assert breakdown.by_category["parameters"] == run.parameters.bytes
    # Steps that are alike need the same, whether they are tracked (the last) or not.
    assert len(set(run.steps.allocated_bytes[1:])) == 1
    assert breakdown.total_bytes == run.steps.allocated_bytes[-1]
    assert peak.allocated_bytes == max(run.steps.allocated_bytes)
    assert peak.allocated_bytes == max(phase.allocated_bytes for phase in run.phases.values())
    # The layers contain one another.
    assert peak.tensor_bytes <= peak.allocated_bytes <= peak.process_bytes
    assert peak.allocated_bytes >= run.parameters.bytes + run.state.bytes
    assert run.state.bytes == sum(run.state.by_dtype.values()) == sum(run.state.by_device.values())


@pytest.mark.parametrize("workload", SMALL)
@pytest.mark.parametrize("optimizer", DEFAULT_OPTIMIZERS)
def test_every_workload_with_every_default_optimizer(launcher: Launcher, workload: str, optimizer: str) -> None:
    check_contract(run_trial(launcher, workload, optimizer))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("workload", ["gpt2", "resnet50"])
def test_every_recipe(launcher: Launcher, workload: str, recipe: str) -> None:
    check_contract(run_trial(launcher, workload, "adam", RECIPES[recipe]))


def test_recipes_change_what_they_are_for(launcher: Launcher) -> None:
    plain = run_trial(launcher, "gpt2", "adam")
    runs = {name: run_trial(launcher, "gpt2", "adam", recipe) for name, recipe in RECIPES.items()}
    assert runs["bf16"].parameters.bytes * 2 == plain.parameters.bytes
    assert runs["bf16"].state.bytes < plain.state.bytes
    assert runs["checkpoint"].phases["forward"].tensor_bytes < plain.phases["forward"].tensor_bytes
    assert runs["step-in-backward"].phases["backward"].allocated_bytes < plain.phases["optimizer"].allocated_bytes
    assert "clip" in runs["clip"].phases
    # Gradients that live through the forward pass are one more copy of the parameters there.
    gap = runs["zero-before-backward"].phases["forward"].allocated_bytes - plain.phases["forward"].allocated_bytes
    assert gap == plain.parameters.bytes
