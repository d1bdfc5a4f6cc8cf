from __future__ import annotations

import sys
import types
from pathlib import Path

import psutil
import pytest

from memprof.devices import host as machine
from memprof.errors import MemprofError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_environment_of_the_cpu_names_no_gpu() -> None:
    torch = pytest.importorskip("torch")
    environment = machine.describe_environment("memprof compare mlp", "cpu")
    assert environment.command == "memprof compare mlp"
    assert environment.torch == torch.__version__
    assert environment.threads == torch.get_num_threads()
    assert environment.gpu is None
    assert environment.gpu_memory_bytes is None
    assert environment.memory_bytes <= psutil.virtual_memory().total
    assert environment.processor
    assert environment.instruction_set == torch.backends.cpu.get_cpu_capability()
    assert environment.date.endswith("+00:00")


def test_cpu_memory_is_the_physical_memory_without_a_lower_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cgroup_limits", lambda membership, mount: [])
    assert machine.device_memory_bytes("cpu") == psutil.virtual_memory().total
    monkeypatch.setattr(machine, "cgroup_limits", lambda membership, mount: [2**30, 2**62])
    assert machine.device_memory_bytes("cpu") == 2**30


def test_cgroup_v2_limit_of_an_ancestor_binds(tmp_path: Path) -> None:
    write(tmp_path / "mount/job/memory.max", "1073741824\n")
    write(tmp_path / "mount/job/step/memory.max", "max\n")
    membership = write(tmp_path / "cgroup", "0::/job/step\n")
    assert machine.cgroup_limits(membership, tmp_path / "mount") == [2**30]


def test_cgroup_v2_path_outside_of_a_containers_mount(tmp_path: Path) -> None:
    write(tmp_path / "mount/memory.max", "4096\n")
    membership = write(tmp_path / "cgroup", "0::/../../docker/abc\n")
    assert 4096 in machine.cgroup_limits(membership, tmp_path / "mount")


def test_cgroup_v1_limit_and_its_word_for_no_limit(tmp_path: Path) -> None:
    write(tmp_path / "mount/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    write(tmp_path / "mount/memory/a/memory.limit_in_bytes", "8192\n")
    membership = write(tmp_path / "cgroup", "5:cpu:/a\n4:memory,hugetlb:/a\n")
    assert machine.cgroup_limits(membership, tmp_path / "mount") == [8192]


def test_no_control_groups(tmp_path: Path) -> None:
    assert machine.cgroup_limits(tmp_path / "absent", tmp_path) == []


def test_processor_name_falls_back_where_proc_has_none(tmp_path: Path) -> None:
    named = write(tmp_path / "cpuinfo", "processor : 0\nmodel name\t: Fast CPU @ 3GHz\n")
    assert machine.processor_name(named) == "Fast CPU @ 3GHz"
    assert machine.processor_name(tmp_path / "absent")


def test_absent_cuda_device_is_one_sentence() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("has a CUDA device")
    with pytest.raises(MemprofError, match="does not say how much memory cuda:0 has"):
        machine.device_memory_bytes("cuda:0")


def test_allocator_conf_prefers_the_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "old")
    assert machine.allocator_conf() == "old"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "new")
    assert machine.allocator_conf() == "new"


@pytest.mark.parametrize(("number", "dotted"), [(91002, "9.10.2"), (8907, "8.9.7"), (90100, "9.1.0"), (None, None)])
def test_cudnn_versions(number: int | None, dotted: str | None) -> None:
    assert machine.dotted_cudnn(number) == dotted


def fake_pynvml(*, starts: bool) -> types.ModuleType:
    module = types.ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def init() -> None:
        if not starts:
            raise NVMLError("Driver Not Loaded")

    module.NVMLError = NVMLError  # type: ignore[attr-defined]
    module.nvmlInit = init  # type: ignore[attr-defined]
    module.nvmlShutdown = lambda: None  # type: ignore[attr-defined]
    module.nvmlSystemGetDriverVersion = lambda: b"570.1"  # type: ignore[attr-defined]
    return module


def test_driver_version_needs_nvml_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(starts=True))
    assert machine.driver_version() == "570.1"
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(starts=False))
    assert machine.driver_version() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.driver_version() is None
