"""Time of a prediction, against PyTorch's own MemTracker on the same step.

python -m pytest tests/benchmarks/test_prediction_benchmark.py --benchmark-enable -s
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from memprof.devices.catalog import find_device
from memprof.devices.resolve import target_of
from memprof.devices.target import Target
from memprof.documents.optimizer_spec import DEFAULT_OPTIMIZERS, parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.cuda.semantics import CudaSemantics
from memprof.prediction.fake.training import STEPS, fake_runs
from memprof.prediction.ranks import dtensor_cache as fake_dtensors
from memprof.prediction.run import predict_runs
from memprof.workloads.loader import load_workload

pytestmark = pytest.mark.filterwarnings("ignore")


def llama(**knobs: int | str) -> WorkloadSpec:
    return WorkloadSpec(model="llama", knobs={"size": "70b", **knobs})


def mem_tracker(spec: WorkloadSpec, steps: int) -> None:
    """Train on fake tensors under PyTorch's tracker: Adam, as its users write it."""
    with FakeTensorMode(), MemTracker() as tracker:
        workload = load_workload(spec).workload
        model = workload.model()
        optimizer = torch.optim.Adam(model.parameters())
        tracker.track_external(model, optimizer)
        for _ in range(steps):
            tracker.reset_mod_stats()
            batch = workload.batch(1)
            workload.loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def test_two_steps_of_llama_70b(benchmark) -> None:  # type: ignore[no-untyped-def]
    adam = [parse_optimizer("adam")]
    benchmark.pedantic(lambda: fake_runs(llama(), adam, Recipe(), 1), rounds=3, iterations=1)
    print(f"\nresident: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB at most")


def test_six_optimizers_on_llama_70b_for_a_gpu(benchmark) -> None:  # type: ignore[no-untyped-def]
    specs = [parse_optimizer(text) for text in DEFAULT_OPTIMIZERS]
    target = target_of(find_device("h200-141gb"))
    benchmark.pedantic(lambda: predict_runs(llama(), specs, Recipe(), 1, target), rounds=1, iterations=1)


def test_time_is_linear_in_the_layers(benchmark) -> None:  # type: ignore[no-untyped-def]
    adam = [parse_optimizer("adam")]
    depths = (20, 40, 80, 160)
    fake_runs(llama(n_layers=1), adam, Recipe(), 1)
    times = [
        min(seconds(lambda n=n: fake_runs(llama(n_layers=n), adam, Recipe(), 1)) for _ in range(2)) for n in depths
    ]  # type: ignore[misc]
    print()
    for depth, taken in zip(depths, times, strict=True):
        print(f"{depth:4d} layers: {taken:6.2f} s, {taken / depth * 1e3:5.1f} ms a layer")
    benchmark.pedantic(lambda: None, rounds=1)


def test_ranks_ask_dtensor_once_for_each_kind_of_shard(benchmark) -> None:  # type: ignore[no-untyped-def]
    """FSDP and Adam on a GPU, against the same with every question to DTensor as PyTorch asks it.

    Another number of ranks each time, or DTensor would remember its answers.
    """
    adam, gpu = [parse_optimizer("adam")], CudaSemantics(Target(kind="cuda"))
    print()

    def taken(layers: int, world_size: int) -> float:
        recipe = Recipe(strategy="fsdp", world_size=world_size)
        return seconds(lambda: fake_runs(llama(n_layers=layers), adam, recipe, 1, gpu))

    taken(1, 2)
    for layers, first in ((20, 4), (80, 16)):
        ours = taken(layers, first)
        with patch.object(fake_dtensors, "_once_per_kind", lambda propagate: propagate):
            theirs = taken(layers, 2 * first)
        print(f"{layers:4d} layers: {ours:5.2f} s, with every question {theirs:5.2f} s: {theirs / ours:.1f} times")
    benchmark.pedantic(lambda: None, rounds=1)


def test_ratio_to_mem_tracker(benchmark) -> None:  # type: ignore[no-untyped-def]
    layers = 16  # MemTracker's time grows faster than the number of layers
    adam = [parse_optimizer("adam")]
    ours = min(seconds(lambda: fake_runs(llama(n_layers=layers), adam, Recipe(), 1)) for _ in range(2))
    theirs = seconds(lambda: mem_tracker(llama(n_layers=layers), STEPS))
    print(f"\n{layers} layers: {ours:.2f} s, MemTracker {theirs:.2f} s: {theirs / ours:.0f} times as long")
    benchmark.pedantic(lambda: None, rounds=1)
