"""One rank of many predicted for a GPU, against PyTorch's CUDA code, DDP and FSDP2 (tests/data/allocator/ranks.json).

As `test_prediction_models`: allocated memory to the byte, reserved memory to one small segment. A few of the recorded
trainings are run; `MEMPROF_EVERYTHING=1` runs all.
"""

from __future__ import annotations

import json
import os

import pytest

from memprof.documents.optimizer_spec import parse_optimizer
from memprof.documents.workload_spec import WorkloadSpec
from memprof.prediction.fake.training import STEPS
from memprof.prediction.run import predict_runs
from tests.accuracy.test_prediction_models import A100, SEGMENT
from tests.data.allocator.real_models import BATCH, MODELS
from tests.data.allocator.real_ranks import RECIPES
from tests.data.allocator.record_ranks import FILE

RECORDED = json.loads(FILE.read_text())
RUNS = [dict(zip(RECORDED["columns"], row, strict=True)) for row in RECORDED["runs"]]
CASES = list(dict.fromkeys((run["model"], run["recipe"]) for run in RUNS))
FEW = [
    *(("gpt2", "ddp"), ("llama", "ddp-amp-bf16"), ("bert-large", "ddp-accumulate")),
    *(("gpt2", "fsdp"), ("llama", "fsdp-amp-bf16"), ("bert-large", "fsdp-uneven-bf16"), ("llama", "fsdp-clip")),
    *(("transformer-big", "fsdp-accumulate"), ("gpt2", "fsdp-checkpoint"), ("llama", "fsdp-step-in-backward")),
]


@pytest.mark.parametrize(("model", "recipe"), CASES if "MEMPROF_EVERYTHING" in os.environ else FEW)
def test_the_peaks_of_a_rank(model: str, recipe: str) -> None:
    recorded = [run for run in RUNS if (run["model"], run["recipe"]) == (model, recipe)]
    optimizers = [parse_optimizer(run["optimizer"]) for run in recorded]
    spec = WorkloadSpec(model=model, knobs=MODELS[model])
    runs = predict_runs(spec, optimizers, RECIPES[recipe], BATCH, A100, STEPS)
    for ours, real in zip(runs, recorded, strict=True):
        assert ours.status == "ok", ours.reason
        assert ours.peak.allocated_bytes == real["allocated_bytes"], real
        assert abs(ours.peak.reserved_bytes - real["reserved_bytes"]) <= SEGMENT, real
