"""`memprof.predict`, and measuring with a prediction beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

import memprof
from memprof.devices.catalog import find_device
from memprof.errors import UsageError
from memprof.workers.launcher import Launcher

KNOBS = {"n_layers": 1, "d_model": 64, "seq_len": 16, "vocab_size": 101, "n_heads": 2}
SPARSE = """
import torch
from torch import nn

class Reader(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y.to_sparse().to_dense()

def build():
    return Reader(8, 3)
"""


def test_on_the_cpu_a_prediction_is_exact_in_every_tensor(launcher: Launcher) -> None:
    options = {"batch_size": 2, "knobs": KNOBS, "optimizers": ["sm3", "adam"], "device": "cpu", "launcher": launcher}
    result = memprof.compare("gpt2", fit=False, validate=True, **options)
    for run in result.runs:
        assert run.source == "measured"
        assert run.validation.reason is None
        figures = {(one.layer, one.phase) for one in run.validation.deviations}
        assert {("state", None), ("tensors", None), ("tensors", "backward"), ("allocated", "optimizer")} <= figures
        for one in run.validation.deviations:
            exact = one.layer in ("state", "tensors") or one.category in ("parameters", "gradients", "optimizer_state")
            assert abs(one.error_bytes) <= (0 if exact else 0.001 * run.peak.allocated_bytes), one


def test_a_model_that_cannot_be_predicted_is_measured_all_the_same(launcher: Launcher, tmp_path: Path) -> None:
    file = tmp_path / "reader.py"
    file.write_text(SPARSE)
    result = memprof.compare(
        f"{file}:build",
        batch_size=2,
        inputs=["float32[B,8]"],
        target="int64[B]<3",
        optimizers=["adam", "sgd"],
        device="cpu",
        fit=False,
        validate=True,
        launcher=launcher,
    )
    for run in result.runs:
        assert run.status == "ok"
        assert "has no fake kernel" in run.validation.reason
        assert run.validation.deviations == []


def test_validating_needs_a_device_that_is_here(launcher: Launcher) -> None:
    with pytest.raises(UsageError, match="rtx-4090 is simulated; leave --validate out"):
        memprof.compare("mlp", device="rtx-4090", validate=True, fit=False, launcher=launcher)


def test_predict_returns_a_comparison_of_predicted_runs(launcher: Launcher) -> None:
    options = {"batch_size": 2, "knobs": KNOBS, "optimizers": ["sm3", "adam"], "launcher": launcher}
    result = memprof.predict("gpt2", device="rtx-4090", **options)
    assert isinstance(result, memprof.Comparison)
    assert [run.source for run in result.runs] == ["predicted", "predicted"]
    assert result.capacity.bytes == find_device("rtx-4090").capacity_bytes
    for run in result.runs:
        assert run.fit is None
        assert run.peak.process_bytes <= run.peak.process_upper_bytes
        assert run.confidence.basis


def test_predict_for_the_cpu_trains_nothing(launcher: Launcher) -> None:
    options = {"batch_size": 2, "knobs": KNOBS, "optimizers": ["adam"], "launcher": launcher}
    (run,) = memprof.predict("gpt2", device="cpu", **options).runs
    assert (run.source, run.device, run.steps.losses) == ("predicted", "cpu", [])
    assert run.peak.reserved_bytes is None
    assert run.peak.allocated_upper_bytes is None
    assert run.notes == []


def test_predict_finds_the_largest_batch_when_asked(launcher: Launcher) -> None:
    options = {"batch_size": 8, "optimizers": ["sgd"], "budget": "64 MiB", "fit": True, "launcher": launcher}
    (run,) = memprof.predict("mlp", device="24GiB", **options).runs
    answer = run.fit.batch_size
    assert answer.value >= 8
    assert answer.peak_bytes <= 64 << 20
