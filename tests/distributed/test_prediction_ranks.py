"""One rank of many predicted for the CPU, against ranks that are processes and talk through gloo."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from memprof.devices.target import Target, parse_torch_version
from memprof.documents.comparison import Run
from memprof.documents.jobs import Forecast, Outcome, Outcomes, Trial
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.fake.training import FakeRun, fake_runs
from memprof.prediction.ranks import fake_ranks
from memprof.prediction.repeat_step import labelled_trace
from memprof.prediction.run import predict_runs
from memprof.workers.launcher import Launcher
from tests.accuracy.test_prediction_cpu import NUMBERS, check_breakdown
from tests.small_workloads import SMALL

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
ODD = {"vocab_size": 515}  # rows of the token table that no number of ranks divides
CASES = [
    ("mlp", "sgd", Recipe(strategy="ddp", world_size=2)),
    ("gpt2", "adam", Recipe(strategy="ddp", world_size=2, accumulate=2, precision="amp-bf16")),
    ("gpt2", "adam", Recipe(strategy="fsdp", world_size=2, precision="amp-bf16")),
    ("gpt2", "sgd", Recipe(strategy="fsdp", world_size=2, checkpoint_activations=True)),
    ("llama", "sm3", Recipe(strategy="fsdp", world_size=3)),
    ("gpt2", "sm3,momentum=0.9", Recipe(strategy="fsdp", world_size=2, step_in_backward=True)),
    ("llama", "adagrad", Recipe(strategy="fsdp", world_size=2, accumulate=2, zero_grad="start", precision="bf16")),
]


def workload(name: str) -> WorkloadSpec:
    return WorkloadSpec(model=name, knobs={**SMALL[name], **(ODD if "vocab_size" in SMALL[name] else {})})


def measured(launcher: Launcher, name: str, optimizer: str, recipe: Recipe) -> Run:
    spec = parse_optimizer(optimizer)
    outcome = launcher.run(
        Trial(workload=workload(name), optimizer=spec, device="cpu", batch_size=2, recipe=recipe),
    )
    assert isinstance(outcome, Outcome)
    return outcome.run


@pytest.mark.parametrize(("name", "optimizer", "recipe"), CASES)
def test_a_prediction_is_what_the_ranks_need(launcher: Launcher, name: str, optimizer: str, recipe: Recipe) -> None:
    (ours,) = predict_runs(workload(name), [parse_optimizer(optimizer)], recipe, 2, Target())
    theirs = measured(launcher, name, optimizer, recipe)
    assert ours.status == theirs.status == "ok"
    assert (ours.rank, ours.parameters, ours.state) == (theirs.rank, theirs.parameters, theirs.state)
    assert ours.peak.tensor_bytes == theirs.peak.tensor_bytes
    assert ours.peak.phase == theirs.peak.phase
    for phase, peak in theirs.phases.items():
        assert ours.phases[phase].tensor_bytes == peak.tensor_bytes, phase
        assert abs(ours.phases[phase].allocated_bytes - peak.allocated_bytes) <= NUMBERS, phase
    check_breakdown(ours, theirs)
    if ours.ranks:
        assert [(one.rank, one.state_bytes) for one in ours.ranks] == [(r.rank, r.state_bytes) for r in theirs.ranks]


def needed(rank: int, recipe: Recipe, optimizers: tuple[str, ...]) -> list[FakeRun]:
    with patch.object(fake_ranks, "fake_ranks", partial(fake_ranks.fake_ranks, rank=rank)):
        return fake_runs(workload("mlp"), [parse_optimizer(text) for text in optimizers], recipe, 2)


@pytest.mark.parametrize("world_size", [2, 3, 7, 11])
def test_no_rank_needs_more_than_the_first(world_size: int) -> None:
    recipe = Recipe(strategy="fsdp", world_size=world_size)
    optimizers = tuple(text for text in DEFAULT_OPTIMIZERS if text != "adafactor")
    tops, states = [], []
    for rank in range(world_size):
        runs = needed(rank, recipe, optimizers)
        traces = [labelled_trace(run) for run in runs]
        tops.append([max_live(trace) for trace in traces])
        states.append([run.state.bytes for run in runs])
    for number in range(len(optimizers)):
        assert tops[0][number] == max(top[number] for top in tops)
        assert states[0][number] == max(state[number] for state in states)
    assert (states[-1] < states[0]) == (not runs[0].alike)


def max_live(trace) -> int:
    live = most = 0
    for _, change in trace.events:
        live += change
        most = max(most, live)
    return most


def test_an_optimizer_that_takes_no_shards_fails_as_it_does_in_training(launcher: Launcher) -> None:
    """Adafactor takes them in PyTorch 2.8, and in 2.13 no longer."""
    recipe = Recipe(strategy="fsdp", world_size=2)
    (ours,) = predict_runs(workload("mlp"), [parse_optimizer("adafactor")], recipe, 2, Target())
    theirs = measured(launcher, "mlp", "adafactor", recipe)
    takes_shards = parse_torch_version(torch.__version__) < (2, 13)
    assert ours.status == theirs.status == ("ok" if takes_shards else "failed")
    assert (ours.reason or "").partition(" in-place ")[0] == (theirs.reason or "").partition(" in-place ")[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_worker_predicts_ranks_for_a_gpu(launcher: Launcher, strategy: str) -> None:
    forecast = Forecast(
        workload=workload("gpt2"),
        optimizers=[parse_optimizer("sm3"), parse_optimizer("adam")],
        device="rtx-4090",
        batch_size=2,
        recipe=Recipe(strategy=strategy, world_size=5),
    )
    answer = launcher.run(forecast)
    assert isinstance(answer, Outcomes)
    runs = [outcome.run for outcome in answer.outcomes]
    assert all(run.peak.allocated_bytes <= run.peak.reserved_bytes <= run.peak.reserved_upper_bytes for run in runs)
    assert {len(run.ranks) for run in runs} == {5 if strategy == "ddp" else 0}  # 64 rows are not shared evenly
    assert all(any("rank 0" in note for note in run.notes) == (strategy == "fsdp") for run in runs)
    assert all(run.breakdown.by_category["communication"] > 0 for run in runs)
    shared = runs[0].parameters.bytes / (4 * runs[0].parameters.count)
    assert shared == 1 if strategy == "ddp" else 0.2 <= shared < 0.22
