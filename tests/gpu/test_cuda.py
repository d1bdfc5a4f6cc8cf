"""On a CUDA device: allocator and NVML figures against an independent count. Skipped where there is none."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

import memprof
from tests import children

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

KNOBS = {"n_layers": 2, "seq_len": 128}
# `null_gpu.py` stands in for a GPU as far as PyTorch's own code goes; Triton's driver is not in it.
NULL_GPU = torch.cuda.is_available() and torch.cuda.get_device_name(0) == "Null GPU"
OPTIMIZERS = ["adam", "adam,fused=true", "sgd", *(() if NULL_GPU else ("sm3",))]
BARE = """
    import json, torch
    from memprof.training.step import move_batch
    from memprof.workloads.loader import load_workload
    from memprof.documents.workload_spec import WorkloadSpec
    workload = load_workload(WorkloadSpec(model="gpt2", knobs={knobs!r})).workload
    torch.manual_seed(0)
    model = workload.model().to("cuda").train()
    optimizer = {optimizer}
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        batch = move_batch(workload.batch(4), torch.device("cuda"), None)
        loss = workload.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    print(json.dumps([torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]))
"""


def bare_peaks(optimizer: str) -> list[int]:
    """Allocated and reserved peak of the third step of a loop that has nothing of memprof's measuring in it."""
    script = textwrap.dedent(BARE.format(knobs=KNOBS, optimizer=optimizer))
    output = children.run([sys.executable, "-c", script]).stdout
    allocated, reserved = output.strip().strip("[]").split(",")
    return [int(allocated), int(reserved)]


@pytest.fixture(scope="module")
def comparison() -> memprof.Comparison:
    return memprof.compare("gpt2", batch_size=4, knobs=KNOBS, optimizers=OPTIMIZERS, device="cuda", fit=False)


def test_peaks_equal_the_bare_loop(comparison: memprof.Comparison) -> None:
    adam = comparison.runs[0]
    allocated, reserved = bare_peaks("torch.optim.Adam(model.parameters())")
    assert adam.steps.allocated_bytes[2] == allocated
    assert adam.peak.reserved_bytes == reserved


def test_layers_contain_one_another(comparison: memprof.Comparison) -> None:
    for run in comparison.runs:
        assert run.status == "ok", run.reason
        assert run.peak.tensor_bytes <= run.peak.allocated_bytes <= run.peak.reserved_bytes
        if run.peak.process_bytes is not None:  # a container may hide the process from NVML
            assert run.peak.process_bytes >= run.peak.reserved_bytes
        assert sum(run.breakdown.by_category.values()) == run.breakdown.total_bytes
        assert run.breakdown.total_bytes == pytest.approx(run.peak.allocated_bytes, rel=0.02)
        assert run.breakdown.by_category.get("unattributed", 0) < 0.05 * run.breakdown.total_bytes


def test_the_allocator_s_own_history_is_replayed_exactly(comparison: memprof.Comparison) -> None:
    for run in comparison.runs:
        history = run.allocator_history
        assert history.exact
        assert history.replayed_reserved_bytes == history.reserved_bytes == run.peak.reserved_bytes
        assert history.allocated_bytes == run.peak.allocated_bytes
        assert run.peak.tensor_bytes <= history.requested_bytes <= history.allocated_bytes


def test_a_record_that_is_reduced_has_the_figures_of_the_whole_one(tmp_path: Path) -> None:
    options = {"batch_size": 4, "knobs": KNOBS, "optimizers": ["adam"], "device": "cuda", "fit": False}
    recipe = memprof.Recipe(steps=12)  # after four of them the record is reduced for the first time
    (reduced,) = memprof.compare("gpt2", recipe=recipe, **options).runs
    (whole,) = memprof.compare("gpt2", recipe=recipe, trace_folder=tmp_path, **options).runs  # which keeps it
    assert reduced.allocator_history == whole.allocator_history
    assert reduced.allocator_history.exact
    assert reduced.breakdown == whole.breakdown
    assert reduced.phases == whole.phases
    assert reduced.steps.allocated_bytes == whole.steps.allocated_bytes
    assert reduced.timeline == whole.timeline


def test_steps_that_are_alike_need_the_same(comparison: memprof.Comparison) -> None:
    for run in comparison.runs:
        assert len(set(run.steps.allocated_bytes[2:])) == 1, run.notes


def test_the_first_seen_categories_are_whole(comparison: memprof.Comparison) -> None:
    for run in comparison.runs:
        held = run.breakdown.by_category
        assert held["parameters"] >= run.parameters.bytes
        if run.state.by_device.get("cuda:0"):
            assert held["optimizer_state"] >= run.state.by_device["cuda:0"]


def test_a_prediction_stands_beside_the_measurement() -> None:
    result = memprof.compare(
        "gpt2", batch_size=4, knobs=KNOBS, optimizers=["adam", "sgd"], device="cuda", fit=False, validate=True
    )
    for run in result.runs:
        assert run.validation.reason is None
        whole = [one for one in run.validation.deviations if one.phase is None and one.category is None]
        errors = {one.layer: one.error_bytes / (one.measured_bytes or 1) for one in whole}
        assert errors["state"] == 0
        assert abs(errors["tensors"]) < 0.005
        assert abs(errors["allocated"]) < 0.005
        assert abs(errors["reserved"]) < 0.02
        assert run.validation.upper_held


def test_implementation_that_ran_is_told(comparison: memprof.Comparison) -> None:
    ran = [run.optimizer.implementation for run in comparison.runs]
    assert ran == ["foreach", "fused", "foreach", "triton"][: len(OPTIMIZERS)]


def test_state_is_on_the_device(comparison: memprof.Comparison) -> None:
    adam = comparison.runs[0]
    assert adam.state.by_device["cuda:0"] == 8 * adam.parameters.count


def test_largest_batch_is_confirmed_under_a_cap() -> None:
    result = memprof.compare(
        "gpt2", batch_size=2, knobs=KNOBS, optimizers=["adam"], device="cuda", budget="2GiB", confirm=True
    )
    answer = result.runs[0].fit.batch_size
    assert answer.method == "confirmed"
    assert answer.peak_bytes <= 2 << 30


def test_out_of_memory_is_a_row() -> None:
    result = memprof.compare(
        "gpt2", batch_size=1 << 20, knobs=KNOBS, optimizers=["adam", "sgd"], device="cuda", fit=False
    )
    assert [run.status for run in result.runs] == ["oom", "oom"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_each_rank_has_a_gpu_of_its_own(strategy: str) -> None:
    recipe = memprof.Recipe(strategy=strategy, world_size=2)
    compared = memprof.compare(
        "gpt2", batch_size=4, knobs=KNOBS, optimizers=["adam"], device="cuda", recipe=recipe, fit=False
    )
    (run,) = compared.runs
    assert run.status == "ok", run.reason
    assert [rank.device for rank in run.ranks] == ["cuda:0", "cuda:1"]
    (alone,) = memprof.compare("gpt2", batch_size=4, knobs=KNOBS, optimizers=["adam"], device="cuda", fit=False).runs
    share = 1 if strategy == "ddp" else 2
    for rank in run.ranks:
        assert rank.state_bytes == pytest.approx(alone.state.bytes / share, rel=0.01)
        assert rank.peak.allocated_bytes <= rank.peak.reserved_bytes
    assert sum(run.breakdown.by_category.values()) == run.breakdown.total_bytes
    assert run.breakdown.by_category["communication"] > 0


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs exactly one GPU")
def test_more_ranks_than_gpus_are_refused() -> None:
    recipe = memprof.Recipe(strategy="ddp", world_size=2)
    with pytest.raises(memprof.MemprofError, match="needs 2 GPUs and this machine has 1"):
        memprof.compare("mlp", optimizers=["sgd"], device="cuda", recipe=recipe, fit=False)
