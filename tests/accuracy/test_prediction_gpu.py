"""Predictions for GPUs: what must be true of any, and figures that can be counted by hand. Nothing here has a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memprof.allocator.settings import parse_alloc_conf
from memprof.devices.catalog import find_device
from memprof.devices.context import LATE_WITHIN_BYTES
from memprof.devices.resolve import target_of
from memprof.devices.target import Target
from memprof.documents.comparison import CATEGORIES, Run
from memprof.documents.jobs import Trial
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.run import predict_run, predict_runs
from tests.accuracy.test_contract import RECIPES
from tests.small_workloads import SMALL

A100 = target_of(find_device("a100-40gb"), torch_version="2.13.0")


def predicted(workload: str, target: Target = A100, recipe: Recipe | None = None, **knobs: int) -> list[Run]:
    specs = [parse_optimizer(text) for text in DEFAULT_OPTIMIZERS]
    spec = WorkloadSpec(model=workload, knobs={**SMALL[workload], **knobs})
    return predict_runs(spec, specs, recipe or Recipe(), 2, target)


def check_run(run: Run) -> None:
    assert run.source == "predicted"
    assert run.status == "ok", run.reason
    assert run.device == "a100-40gb"
    assert sum(run.breakdown.by_category.values()) == run.breakdown.total_bytes == sum(run.breakdown.by_module.values())
    assert set(run.breakdown.by_category) <= set(CATEGORIES)
    assert run.breakdown.total_bytes == run.steps.allocated_bytes[-1]
    assert run.breakdown.by_category["parameters"] >= run.parameters.bytes  # blocks are rounded
    assert run.peak.tensor_bytes <= run.peak.allocated_bytes <= run.peak.reserved_bytes
    assert run.peak.allocated_bytes == max(run.steps.allocated_bytes)
    assert run.peak.allocated_bytes % 512 == run.peak.reserved_bytes % (2 << 20) == 0
    check_bounds(run)
    for phase in run.phases.values():
        assert phase.tensor_bytes <= phase.allocated_bytes <= phase.reserved_bytes


def check_bounds(run: Run) -> None:
    """Every figure of the allocator has its bound, and the process is what is reserved and the context."""
    device = find_device(run.device)
    assert run.peak.process_bytes == run.peak.reserved_bytes + device.context_bytes + device.late_bytes
    most = device.context_range_bytes[1] + device.late_bytes + LATE_WITHIN_BYTES
    assert run.peak.process_upper_bytes == run.peak.reserved_upper_bytes + most
    for figures in (run.peak, *run.phases.values()):
        assert figures.allocated_bytes <= figures.allocated_upper_bytes <= figures.reserved_upper_bytes
        assert figures.reserved_bytes <= figures.reserved_upper_bytes
    assert run.peak.reserved_upper_bytes == max(phase.reserved_upper_bytes for phase in run.phases.values())
    assert {one.what for one in run.confidence.ranges} >= {"CUDA context", "memory reserved, by the order of frees"}
    for one in run.confidence.ranges:
        assert one.low_bytes <= one.bytes <= one.high_bytes


@pytest.mark.parametrize("workload", SMALL)
def test_every_workload(workload: str) -> None:
    for run in predicted(workload):
        check_run(run)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe(recipe: str) -> None:
    for run in predicted("gpt2", recipe=RECIPES[recipe]):
        check_run(run)


def test_state_is_what_it_is_on_a_cpu() -> None:
    for gpu, cpu in zip(predicted("gpt2"), predicted("gpt2", Target()), strict=True):
        assert gpu.state == cpu.state
        assert gpu.parameters == cpu.parameters


def test_sgd_on_an_mlp_counted_by_hand() -> None:
    """Parameters, gradients, batch, workspaces: the optimizer phase of SGD without momentum holds nothing else."""
    (run,) = predict_runs(WorkloadSpec(model="mlp"), [parse_optimizer("sgd")], Recipe(), 64, A100)
    batch = 64 * 784 * 4 + 64 * 8
    assert run.phases["optimizer"].tensor_bytes == 2 * run.parameters.bytes + batch + 4  # the loss
    assert run.breakdown.by_category["workspace"] == 2 * 8519680


def test_a_gpu_that_is_too_small_runs_out_of_memory() -> None:
    target = replace(A100, capacity_bytes=24 << 20)
    for run in predicted("gpt2", target, n_layers=8):
        assert run.status == "oom"
        assert run.peak is None
        assert "out of memory in the" in str(run.reason)
        assert "needed, 24.00 MiB there" in str(run.reason)


def test_settings_of_the_allocator_count() -> None:
    plain = predicted("gpt2", vocab_size=40_000)[2]
    settings = parse_alloc_conf("roundup_power2_divisions:2")
    rounded = predicted("gpt2", replace(A100, allocator=settings), vocab_size=40_000)[2]
    assert rounded.peak.tensor_bytes == plain.peak.tensor_bytes
    assert rounded.peak.allocated_bytes >= plain.peak.allocated_bytes
    assert rounded.peak.reserved_bytes > plain.peak.reserved_bytes


def test_one_trial_is_the_same_as_one_of_many() -> None:
    trial = Trial(
        workload=WorkloadSpec(model="gpt2", knobs=SMALL["gpt2"]),
        optimizer=parse_optimizer("adam"),
        device="a100-40gb",
        batch_size=2,
        recipe=Recipe(),
    )
    assert predict_run(trial, A100) == predicted("gpt2")[DEFAULT_OPTIMIZERS.index("adam")]


def test_only_who_read_a_value_is_warned_about() -> None:
    warnings = {run.optimizer.spec: run.confidence.warnings for run in predicted("gpt2")}
    assert "aten::_local_scalar_dense in the optimizer phase" in warnings.pop("adafactor")[0]
    assert set(map(tuple, warnings.values())) == {()}


def test_it_says_which_attention_kernel_a_rule_chose() -> None:
    assert "memory-efficient attention" in " ".join(predicted("gpt2")[2].confidence.basis)
    assert "flash attention" in " ".join(predicted("gpt2", recipe=RECIPES["amp-bf16"])[2].confidence.basis)


def test_a_bound_above_the_memory_there_is_a_warning() -> None:
    # Larger images than in the other tests: smaller workspaces of cuDNN find room in what the allocator can give back.
    spec = WorkloadSpec(model="resnet50", knobs={**SMALL["resnet50"], "image_size": 64})
    sgd = [parse_optimizer("sgd")]
    (run,) = predict_runs(spec, sgd, Recipe(), 2, A100)
    assert run.peak.reserved_upper_bytes > run.peak.reserved_bytes
    (tight,) = predict_runs(spec, sgd, Recipe(), 2, replace(A100, capacity_bytes=run.peak.reserved_bytes))
    assert tight.status == "ok"
    assert "it may run out of memory" in tight.confidence.warnings[-1]
    assert not any("run out of memory" in warning for warning in run.confidence.warnings)


LIBRARY = """
import torch
from torch import nn

@torch.library.custom_op("elsewhere::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2

@halve.register_fake
def _(x):
    return torch.empty_like(x)

halve.register_autograd(lambda ctx, grad: grad / 2)

class Head(nn.Linear):
    def forward(self, x):
        return halve(super().forward(x))

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.cells(x[:, None])[0][:, -1])

def custom():
    return nn.Sequential(nn.Linear(8, 8), Head(8, 3))

def recurrent():
    return Recurrent()
"""


@pytest.mark.parametrize(
    ("attribute", "words"), [("custom", "elsewhere::halve in 1: its outputs are known"), ("recurrent", "cells")]
)
def test_a_guess_is_a_warning_with_operator_and_module(tmp_path: Path, attribute: str, words: str) -> None:
    file = tmp_path / "library.py"
    file.write_text(LIBRARY)
    spec = WorkloadSpec(model=f"{file}:{attribute}", inputs=("float32[B,8]",), target="int64[B]<3")
    (run,) = predict_runs(spec, [parse_optimizer("sgd")], Recipe(), 4, A100)
    assert run.status == "ok", run.reason
    assert any(words in warning for warning in run.confidence.warnings), run.confidence.warnings
