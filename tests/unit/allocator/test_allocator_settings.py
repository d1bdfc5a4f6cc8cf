from __future__ import annotations

import pytest

from memprof.allocator.settings import AllocatorSettings, parse_alloc_conf
from memprof.errors import UsageError

MIB, GIB = 2**20, 2**30


def test_nothing_gives_the_defaults() -> None:
    assert parse_alloc_conf("") == AllocatorSettings()
    assert parse_alloc_conf("backend:native,pinned_use_background_threads:True") == AllocatorSettings()


def test_every_option_that_matters_is_read() -> None:
    text = (
        "max_split_size_mb:128, max_non_split_rounding_mb:64,garbage_collection_threshold:0.8,"
        "expandable_segments:True,large_segment_size_mb:32,per_process_memory_fraction:0.9,roundup_power2_divisions:8"
    )
    assert parse_alloc_conf(text) == AllocatorSettings(
        max_split_bytes=128 * MIB,
        max_non_split_rounding_bytes=64 * MIB,
        garbage_collection_threshold=0.8,
        expandable_segments=True,
        large_segment_bytes=32 * MIB,
        memory_fraction=0.9,
        roundup_divisions=(8,) * 16,
    )


def test_divisions_per_size_are_as_pytorch_s_own_test_has_them() -> None:
    """c10/test/core/AllocatorConfig_test.cpp: sizes in MiB; the first names those below, `>` those above."""
    settings = parse_alloc_conf("roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:4,>:1]")
    expected = {1: 8, 32: 8, 64: 8, 128: 2, 256: 4, 512: 2, 1024: 4, 2048: 1, 65536: 1}
    for size, divisions in expected.items():
        assert settings.roundup_divisions[min(size.bit_length() - 1, 15)] == divisions


@pytest.mark.parametrize(
    ("divisions", "size", "rounded"),
    [
        (0, 1, 512),
        (0, 512, 512),
        (0, 513, 1024),
        (4, 1200, 1536),  # not above 4 x 512: to the next 512
        (4, 2049, 2560),
        (4, 70 * MIB, 80 * MIB),
        (4, 80 * MIB, 80 * MIB),
        (4, 64 * MIB, 64 * MIB),
        (1, 70 * MIB + 1, 70 * MIB + 512),
        (2, 100 * MIB, 128 * MIB),
    ],
)
def test_rounding(divisions: int, size: int, rounded: int) -> None:
    assert AllocatorSettings(roundup_divisions=(divisions,) * 16).round_size(size) == rounded


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_split_size:128", "did you mean 'max_split_size_mb'?"),
        ("expandable_segment:True", "did you mean 'expandable_segments'?"),
        ("expandable_segments:true", "must be True or False"),
        ("max_split_size_mb:19", "give a number of MiB from 20 on"),
        ("max_split_size_mb:x", "give a number of MiB from 20 on"),
        ("max_split_size_mb", "write option:value,option:value"),
        ("large_segment_size_mb:10", "from 11 on"),
        ("large_segment_size_mb:64,max_split_size_mb:40", "it must be at least 64, a large segment"),
        ("garbage_collection_threshold:1.0", "between 0 and 1"),
        ("per_process_memory_fraction:1.5", "between 0 and 1"),
        ("roundup_power2_divisions:3", "'3' is not a power of two"),
        ("roundup_power2_divisions:[256:3]", "'3' is not a power of two"),
        ("roundup_power2_divisions:[100:2]", "'100' is not a power of two"),
        ("backend:cudaMallocAsync", "backend:cudaMallocAsync is not modelled"),
        ("throw_on_cudamalloc_oom:True", "is not modelled"),
    ],
)
def test_mistakes_are_told_in_one_sentence(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_alloc_conf(text)
    assert told in str(caught.value)
