from __future__ import annotations

import json

import pytest

from memprof.optimizers.registry import KNOWN_OPTIMIZERS
from memprof.workloads.builtin import BUILTINS
from tests.cli.conftest import Command

torch = pytest.importorskip("torch")


def test_models_are_listed_with_their_knobs(memprof: Command) -> None:
    done = memprof("models", COLUMNS="200")
    assert done.returncode == 0
    for name, model in BUILTINS.items():
        assert name in done.stdout
        assert model.description in done.stdout
    listed = {model["name"]: model for model in json.loads(memprof("models", "--json").stdout)}
    assert set(listed) == set(BUILTINS)
    assert listed["gpt2"]["parameters"] == 124_439_808
    assert listed["gpt2"]["knobs"] == dict(BUILTINS["gpt2"].knobs)


def test_models_stay_readable_at_80_columns(memprof: Command) -> None:
    lines = memprof("models", COLUMNS="80").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_optimizers_are_listed_but_for_those_that_are_refused(memprof: Command) -> None:
    listed = json.loads(memprof("optimizers", "--json").stdout)
    refused = {name for name, known in KNOWN_OPTIMIZERS.items() if known.refusal}
    assert {one["name"] for one in listed} == set(KNOWN_OPTIMIZERS) - refused
    shown = memprof("optimizers").stdout
    assert "4(m+n) B per m x n matrix" in shown
    assert "lbfgs" not in shown


def test_devices_have_memory(memprof: Command) -> None:
    listed = json.loads(memprof("devices", "--json").stdout)
    here = [one for one in listed if not one["simulated"]]
    assert here[0]["device"] == "cpu"
    assert 0 < here[0]["free_bytes"] <= here[0]["total_bytes"]
    assert len(here) == 1 + (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert "GiB" in memprof("devices").stdout


def test_devices_that_can_be_simulated_are_listed_with_their_sources(memprof: Command) -> None:
    listed = {one["device"]: one for one in json.loads(memprof("devices", "--json").stdout) if one["simulated"]}
    assert len(listed) >= 30
    gpu = listed["rtx-4090"]
    assert gpu["name"] == "NVIDIA GeForce RTX 4090"
    assert gpu["total_bytes"] == 25_250_627_584
    assert gpu["free_bytes"] is None
    assert gpu["compute_capability"] == "8.9"
    assert gpu["context_low_bytes"] <= gpu["context_bytes"] <= gpu["context_high_bytes"]
    assert gpu["memory_reported"]
    shown = memprof("devices", COLUMNS="80").stdout
    assert all(name in shown for name in listed)
    assert "23.52 GiB" in shown
    assert "7.80 GiB *" in shown  # an RTX 2080's is computed


def test_doctor_finds_this_machine_well(memprof: Command) -> None:
    done = memprof("doctor", "--strict")
    assert done.returncode == 0
    assert done.stderr == ""
    checks = {check["name"]: check for check in json.loads(memprof("doctor", "--json").stdout)}
    assert checks["torch"]["level"] == "pass"
    assert torch.__version__ in checks["torch"]["finding"]
    assert checks["CPU allocator"]["level"] == "pass"
    assert set(checks["processes"]) == {"name", "level", "finding"}


def test_strict_doctor_exits_1_where_a_check_fails(memprof: Command, tmp_path_factory: pytest.TempPathFactory) -> None:
    broken = tmp_path_factory.mktemp("broken")
    (broken / "torch.py").write_text("raise ImportError('no such library')")
    path = f"{broken}:{__file__.rsplit('/tests/', 1)[0]}"
    done = memprof("doctor", "--strict", PYTHONPATH=path)
    assert done.returncode == 1
    assert "fail  torch" in done.stdout
    assert memprof("doctor", PYTHONPATH=path).returncode == 0
