from __future__ import annotations

import pytest

from memprof.errors import UsageError
from memprof.simulation.catalog import catalog, find_device

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
    assert device.capacity_bytes == device.total_bytes - device.context_bytes
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
        ("abacus", "is no GPU that can be simulated; `memprof devices` lists them"),
        ("24", "a size such as 24GiB"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_device(name)
    assert told in str(caught.value)
