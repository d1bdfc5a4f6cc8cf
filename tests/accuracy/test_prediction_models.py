"""Whole training steps predicted for a GPU, against PyTorch's own CUDA code (tests/data/allocator/models.json).

Allocated memory is to the byte; reserved memory to one small segment, because blocks that die at the same time may do
so in another order. A few of the recorded trainings are run; `MEMPROF_EVERYTHING=1` runs all 210.
"""

from __future__ import annotations

import json
import os
from itertools import product

import pytest

from memprof.devices.target import Target, parse_torch_version
from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.fake.training import STEPS
from memprof.prediction.run import predict_runs
from tests.data.allocator.real_models import BATCH, MODELS, OPTIMIZERS, RECIPES
from tests.data.allocator.record_models import CAPACITY, FILE

RECORDED = json.loads(FILE.read_text())
RUNS = [dict(zip(RECORDED["columns"], row, strict=True)) for row in RECORDED["runs"]]
A100 = Target(
    name="a100",
    kind="cuda",
    capability=(8, 0),
    sm_count=108,
    torch_version=parse_torch_version(RECORDED["torch"]),
    capacity_bytes=CAPACITY,
)
SEGMENT = 2**21
# Of the 35 recorded, a few that differ in what they run.
FEW = [
    *(("mlp", "fp32"), ("gpt2", "fp32"), ("gpt2", "amp-bf16"), ("gpt2", "amp-fp16"), ("bert-large", "bf16")),
    *(
        ("transformer-big", "accumulate"),
        ("llama", "amp-bf16"),
        ("llama", "clip"),
        ("bert-large", "zero-before-backward"),
    ),
]


@pytest.mark.parametrize(
    ("model", "recipe"), list(product(MODELS, RECIPES)) if "MEMPROF_EVERYTHING" in os.environ else FEW
)
def test_the_peaks_of_a_training(model: str, recipe: str) -> None:
    spec = WorkloadSpec(model=model, knobs=MODELS[model])
    runs = predict_runs(spec, [parse_optimizer(text) for text in OPTIMIZERS], RECIPES[recipe], BATCH, A100, STEPS)
    recorded = [run for run in RUNS if (run["model"], run["recipe"]) == (model, recipe)]
    assert [run["optimizer"] for run in recorded] == list(OPTIMIZERS)
    for ours, real in zip(runs, recorded, strict=True):
        assert ours.status == "ok", ours.reason
        assert ours.peak.allocated_bytes == real["allocated_bytes"], real
        assert abs(ours.peak.reserved_bytes - real["reserved_bytes"]) <= SEGMENT, real
