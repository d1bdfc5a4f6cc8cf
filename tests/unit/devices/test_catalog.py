from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from memprof.devices.catalog import OWN_DEVICES, catalog, device_here, devices_by_name, find_device
from memprof.errors import UsageError

MIB, GIB = 2**20, 2**30

# What torch.cuda.get_device_properties().total_memory was said to be, by other people than in the data file.
SEEN_ELSEWHERE = {
    "rtx-3090": 24259 * MIB,
    "rtx-4090": 24210 * MIB,
    "t4": 15109 * MIB,
    "a100-40gb": 42_298_834_944,
    "a100-80gb": 84_987_740_160,
    "h100-80gb": round(79.11 * GIB),
    "h100-94gb-nvl": round(93.00 * GIB),
    "l40s": 45589 * MIB,
    "v100-32gb": 34_089_926_656,
    "rtx-5090": 33_660_534_784,
    "rtx-2080-ti": 10989 * MIB,
    "rtx-3060": 12_629_508_096,
}


def test_there_are_enough_gpus_of_every_kind_and_their_names_are_their_own() -> None:
    names = [name for device in catalog() for name in (device.name, device.title, *device.aliases)]
    assert len(catalog()) >= 30
    assert len(set(names)) == len(names)
    assert {device.compute_capability[0] for device in catalog()} == {6, 7, 8, 9, 10, 12}
    reported = [device for device in catalog() if device.memory_reported]
    assert len(reported) >= 50


@pytest.mark.parametrize("device", catalog(), ids=lambda device: device.name)
def test_every_gpu_is_found_by_every_name_and_its_figures_are_possible(device) -> None:
    for name in (device.name, device.title, device.title.upper(), device.name.replace("-", " "), *device.aliases):
        assert find_device(name) is device
    nominal = round(device.total_bytes / GIB * 1.04)
    assert nominal * 0.92 <= device.total_bytes / GIB <= nominal + 0.5
    assert len(device.memory_source) > 10
    low, high = device.context_range_bytes
    assert 40 * MIB < low <= device.context_bytes < high < 1.2 * GIB
    assert device.capacity_bytes == device.total_bytes - device.context_bytes - device.late_bytes
    assert 18 * MIB < device.late_bytes < low
    assert device.bandwidth_gb_per_second


@pytest.mark.parametrize(("name", "seen"), SEEN_ELSEWHERE.items())
def test_memory_is_known_to_a_per_cent(name: str, seen: int) -> None:
    assert abs(find_device(name).total_bytes - seen) < 0.01 * seen


def test_the_size_in_a_name_is_the_nominal_memory() -> None:
    for device in catalog():
        for part in device.name.split("-"):
            if part.endswith("gb"):
                nominal = int(part.removesuffix("gb"))
                assert 0.9 * nominal * 10**9 < device.total_bytes < 1.075 * nominal * 10**9


def test_context_is_as_was_seen() -> None:
    assert find_device("rtx-3090").context_bytes == 256 * MIB
    assert find_device("rtx-6000-ada").context_bytes == 426 * MIB
    assert find_device("a100").context_bytes == 432 * MIB  # by the rule: 108 x 2048 threads x 2 KiB


def test_a_size_is_a_generic_device() -> None:
    device = find_device("24GiB")
    assert (device.name, device.total_bytes) == ("24GiB", 24 * GIB)
    assert device.compute_capability == (8, 0)
    assert find_device("80 GB").total_bytes == 80 * 10**9
    with pytest.raises(UsageError, match="less than a CUDA context may take; give at least"):
        find_device("100MiB")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rtx-4095", "the nearest are rtx-4090"),
        ("a100-60gb", "the nearest are a100-80gb, a100-40gb"),
        ("abacus", "is not a GPU that can be simulated; `memprof devices` lists them"),
        ("24", "a size such as 24GiB"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_device(name)
    assert told in str(caught.value)


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Write the user's file of devices and let the catalog read it."""
    path = tmp_path / "devices.json"

    def write(text: str) -> None:
        path.write_text(text)
        monkeypatch.setenv(OWN_DEVICES, str(path))
        forget()

    def forget() -> None:
        catalog.cache_clear()
        devices_by_name.cache_clear()

    yield write
    monkeypatch.undo()
    forget()


MINE = (
    '{"schema": "memprof.devices/1", "devices": [{"name": "%s", "memory_bytes": 68182605824, '
    '"compute_capability": "9.0", "sm_count": 120}]}'
)


def test_the_users_file_adds_devices_and_replaces_those_of_the_same_name(own_file: Callable[[str], None]) -> None:
    count = len(catalog())
    own_file(MINE % "my-gpu-64gb")
    mine = find_device("My GPU 64GB")
    assert len(catalog()) == count + 1
    assert (mine.total_bytes, mine.compute_capability, mine.sm_count) == (68182605824, (9, 0), 120)
    assert mine.context_bytes == 120 * 2048 * 2048
    assert mine.bandwidth_gb_per_second is None
    assert not mine.generic
    own_file(MINE % "rtx-4090")
    assert len(catalog()) == count
    assert find_device("rtx-4090").total_bytes == 68182605824


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not a valid list of devices: the whole: Invalid JSON"),
        (MINE % "Not A Name", "is not a valid list of devices: devices.0.name"),
        (MINE.replace("120", "0") % "a", "devices.0.sm_count: Input should be greater than 0"),
        (MINE.replace("devices/1", "devices/9") % "a", "is not a valid list of devices: schema"),
    ],
)
def test_a_broken_file_is_one_sentence(own_file: Callable[[str], None], text: str, sentence: str) -> None:
    own_file(text)
    with pytest.raises(UsageError, match=sentence) as caught:
        catalog()
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(
    own_file: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file("")
    monkeypatch.setenv(OWN_DEVICES, str(tmp_path / "absent.json"))
    with pytest.raises(UsageError, match=r"MEMPROF_DEVICES names .*absent\.json, which cannot be read: No such file"):
        catalog()


def test_a_gpu_that_is_here_has_its_own_memory_and_the_context_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="NVIDIA RTX 6000 Ada Generation", total_memory=50 * GIB, major=8, minor=9, multi_processor_count=142
    )
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    here = device_here("cuda:0")
    assert (here.name, here.total_bytes, here.sm_count) == ("cuda:0", 50 * GIB, 142)
    assert here.context_bytes == find_device("rtx-6000-ada").context_bytes
    properties.name = "A GPU of tomorrow"
    assert device_here("cuda:0").context_bytes == 142 * 1536 * 2048
