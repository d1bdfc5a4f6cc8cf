from __future__ import annotations

import os
import sys
import types

import pytest

from memprof.doctor import machine as doctor
from memprof.doctor.machine import Check

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("2.7.1", "fail"),
        ("1.13.1+cu117", "fail"),
        ("2.8.0", "pass"),
        ("2.13.0+cpu", "pass"),
        ("2.15.0.dev20260101", "pass"),
        ("2.16.0", "warn"),
        ("3.0.0", "warn"),
        ("unknown", "fail"),
    ],
)
def test_torch_versions(monkeypatch: pytest.MonkeyPatch, version: str, level: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert doctor.check_torch().level == level


def test_more_threads_than_cores_is_a_warning_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 0)
    found = doctor.check_threads()
    assert found.level == "warn"
    assert "OMP_NUM_THREADS=0" in found.finding
    monkeypatch.setattr(doctor, "usable_cores", lambda: 10_000)
    assert doctor.check_threads().level == "pass"


def test_the_allocator_probe_is_really_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_cpu_allocator().level == "pass"
    monkeypatch.setattr(doctor, "_allocations_of_a_probe", lambda: [1, 2])
    assert doctor.check_cpu_allocator().finding == "an allocation of 1234560 bytes was seen as [1, 2]"

    def broken() -> list[int]:
        raise AttributeError("no _enable_profiler")

    monkeypatch.setattr(doctor, "_allocations_of_a_probe", broken)
    assert doctor.check_cpu_allocator().level == "fail"


def test_cuda_missing_from_torch_and_from_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in doctor.check_cuda().finding
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no GPU" in doctor.check_cuda().finding
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"H{index}")
    assert doctor.check_cuda() == Check("CUDA", "pass", "13.0 with H0, H1")


def test_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("pynvml")
    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlSystemGetDriverVersion": "570.1",
        "nvmlDeviceGetCount": 2,
    }
    for name, answer in answers.items():
        setattr(library, name, lambda answer=answer: answer)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert doctor.check_nvml() == Check("NVML", "pass", "driver 570.1, 2 GPU(s)")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert doctor.check_nvml().level == "warn"


def test_fork_and_high_water(monkeypatch: pytest.MonkeyPatch) -> None:
    from memprof.measurement import process_memory

    monkeypatch.setattr(process_memory, "reset_peak_rss", lambda: False)
    assert doctor.check_high_water().level == "warn"
    monkeypatch.setattr(process_memory, "reset_peak_rss", lambda: True)
    assert doctor.check_high_water().level == "pass"
    monkeypatch.delattr(os, "fork")
    assert doctor.check_fork().level == "fail"


def test_memory_names_a_lower_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cpu_memory_bytes", lambda: 2**30)
    assert doctor.check_memory().finding.startswith("1.00 GiB by the control group's limit, of ")


@pytest.mark.parametrize(
    ("conf", "level"),
    [(None, "pass"), ("expandable_segments:True", "pass"), ("backend:cudaMallocAsync", "warn")],
)
def test_allocator_settings(monkeypatch: pytest.MonkeyPatch, conf: str | None, level: str) -> None:
    monkeypatch.setattr(doctor, "allocator_conf", lambda: conf)
    assert doctor.check_allocator().level == level


def test_every_check_has_a_name_of_its_own() -> None:
    names = [check.name for check in doctor.examine()]
    assert len(set(names)) == len(names) == 15


def test_ranks_need_gloo_on_the_cpu_and_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = torch.distributed
    assert doctor.check_ranks().level == "pass"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: True)
    assert doctor.check_ranks().finding.endswith("on the CPU, NCCL for --world-size up to 4 on GPUs")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "it takes two of them" in doctor.check_ranks().finding
    monkeypatch.setattr(distributed, "is_gloo_available", lambda: False)
    assert doctor.check_ranks().level == "warn"
