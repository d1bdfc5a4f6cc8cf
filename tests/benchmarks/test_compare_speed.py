"""Speed of `memprof compare`: measuring against the same steps run bare, a cold comparison, and `--help`.

    pytest tests/benchmarks/test_compare_speed.py --benchmark-only

Each pair runs in one session; the figure in parentheses is the ratio to the fastest of its group.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memprof.documents.jobs import Trial
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.recipe import Recipe
from memprof.documents.workload_spec import WorkloadSpec
from memprof.measurement.trial import run_trial
from memprof.optimizers.registry import build_optimizer
from memprof.workloads.loader import load_workload
from tests import children

WORKLOADS = {
    "gpt2": (WorkloadSpec(model="gpt2", knobs={"n_layers": 4, "seq_len": 64}), 2),
    "resnet50": (WorkloadSpec(model="resnet50", knobs={"image_size": 96}), 4),
}
STEPS = 8


def in_fresh_process(work: Callable[[], object]) -> None:
    """Fork, as memprof's server does, work in the child, and wait for it."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def bare_steps(spec: WorkloadSpec, batch_size: int) -> None:
    """The training loop that anybody writes."""
    torch.manual_seed(0)
    workload = load_workload(spec).workload
    model = workload.model().train()
    optimizer = build_optimizer(parse_optimizer("adam"), list(model.named_parameters()))
    for _ in range(STEPS):
        batch = workload.batch(batch_size)
        loss = workload.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()


def measured_steps(spec: WorkloadSpec, batch_size: int) -> None:
    trial = Trial(
        workload=spec,
        optimizer=parse_optimizer("adam"),
        device="cpu",
        batch_size=batch_size,
        recipe=Recipe(warmup=1, steps=STEPS - 1),
    )
    run_trial(trial, lambda step: None)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("how", [bare_steps, measured_steps])
def test_measuring_against_bare_steps(benchmark, workload, how) -> None:
    import torch._dynamo  # noqa: F401  the server has it too

    benchmark.group = f"{STEPS} steps of {workload} in a fresh process"
    benchmark.pedantic(in_fresh_process, [lambda: how(*WORKLOADS[workload])], rounds=5, warmup_rounds=1)


def run_command(*arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("memprof")), *arguments]
    children.run(command)


@pytest.mark.parametrize(
    "arguments",
    [("compare", "--help"), ("compare", "mlp", "--no-fit"), ("compare", "mlp")],
    ids=lambda arguments: " ".join(arguments),
)
def test_cold_command(benchmark, arguments: tuple[str, ...]) -> None:
    benchmark.group = "cold commands"
    benchmark.pedantic(run_command, arguments, rounds=3, warmup_rounds=1)
