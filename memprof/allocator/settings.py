"""The settings of PyTorch's CUDA caching allocator, as `PYTORCH_ALLOC_CONF` gives them.

Sources: `c10/core/AllocatorConfig.{h,cpp}` and `c10/cuda/CUDAAllocatorConfig.{h,cpp}`. The versions 2.6.0, 2.8.0 and
2.15.0 were tried, and they differ as follows:

- `large_segment_size_mb` and `per_process_memory_fraction` exist in 2.15 and not in 2.8. In 2.8 a large segment is 20
  MiB, which is still the default, and the call `torch.cuda.set_per_process_memory_fraction` has the effect of the
  second option.
- `max_split_size_mb` and `max_non_split_rounding_mb` must be more than 20 in 2.8. In 2.15 they must be at least 20, or
  at least as much as a large segment. This module accepts a limit of exactly 20 MiB.
- In `roundup_power2_divisions:[..., >:N]`, `>` begins after the last size named in 2.15; 2.8 overwrites the entry of
  that size as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from memprof.errors import UsageError, did_you_mean

MIB = 2**20
SMALLEST_BLOCK = 512
SMALL_LIMIT = MIB  # the largest block of the small pool
SMALL_SEGMENT = 2 * MIB
LARGE_LIMIT = 10 * MIB  # a request of at least this size gets its own segment
LARGE_ROUNDING = 2 * MIB
ROUNDING_INTERVALS = 16  # powers of two from 1 MiB to 64 GiB
UNLIMITED = 2**63


@dataclass(frozen=True)
class AllocatorSettings:
    """The settings that decide the layout of the caching allocator's memory. The defaults are PyTorch's.

    Attributes:
        max_split_bytes: blocks of at least this size are never split (`max_split_size_mb`).
        max_non_split_rounding_bytes: an unsplittable block serves only requests that are smaller by less than this.
        roundup_divisions: for each power of two from 1 MiB on, the number of parts into which the interval up to the
            next power of two is divided when a size is rounded up; 0 and 1 round to 512 B.
        garbage_collection_threshold: the share of the allowed memory above which cached blocks are released; 0 turns
            this off. As in PyTorch it has an effect only together with a memory fraction.
        expandable_segments: whether each pool and stream has one growing virtual range instead of fixed segments.
        large_segment_bytes: the size of the segment for a request between 1 and 10 MiB, and of the pages of an
            expandable segment.
        memory_fraction: the share of the device's memory that may be reserved; None sets no limit.
    """

    max_split_bytes: int = UNLIMITED
    max_non_split_rounding_bytes: int = 20 * MIB
    roundup_divisions: tuple[int, ...] = (0,) * ROUNDING_INTERVALS
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False
    large_segment_bytes: int = 20 * MIB
    memory_fraction: float | None = None

    def round_size(self, size: int) -> int:
        """Return the block size for a request (`DeviceCachingAllocator::round_size`).

        Args:
            size: the bytes requested.

        Returns:
            The size of the block in bytes.
        """
        if size < SMALLEST_BLOCK:
            return SMALLEST_BLOCK
        interval = min(max(size.bit_length() - MIB.bit_length(), 0), ROUNDING_INTERVALS - 1)
        divisions = self.roundup_divisions[interval]
        if divisions > 1 and size > SMALLEST_BLOCK * divisions:
            return _next_division(size, divisions)
        return -(-size // SMALLEST_BLOCK) * SMALLEST_BLOCK

    def segment_size(self, rounded: int) -> int:
        """Return the bytes to request from the driver for a block (`get_allocation_size`).

        Args:
            rounded: the size of the block in bytes.
        """
        if rounded <= SMALL_LIMIT:
            return SMALL_SEGMENT
        if rounded < LARGE_LIMIT:
            return self.large_segment_bytes
        return -(-rounded // LARGE_ROUNDING) * LARGE_ROUNDING


def _next_division(size: int, divisions: int) -> int:
    """Round a size up to a multiple of 1/`divisions` of the power of two below it.

    Source: `roundup_power2_next_division`.
    """
    power = 1 << (size.bit_length() - 1)
    if size == power:
        return size
    part = power // divisions
    return -(-size // part) * part if part else 2 * power


def parse_alloc_conf(text: str) -> AllocatorSettings:
    """Return the settings for a value of `PYTORCH_ALLOC_CONF` (or `PYTORCH_CUDA_ALLOC_CONF`).

    Args:
        text: comma-separated `option:value` pairs; "" gives the defaults.

    Raises:
        UsageError: PyTorch would refuse an option or a value, or the backend is not modelled.
    """
    settings = AllocatorSettings()
    for option, value in _pairs(text):
        if option in _READERS:
            settings = _READERS[option](settings, option, value)
        elif option not in WITHOUT_EFFECT:
            known = [*_READERS, *WITHOUT_EFFECT]
            raise UsageError(f"{option!r} is not an option of PYTORCH_ALLOC_CONF{did_you_mean(option, known)}")
    _check_against_segment(settings)
    return settings


def _check_against_segment(settings: AllocatorSettings) -> None:
    """Refuse limits below the size of a large segment, as `parseMaxSplitSize` and its neighbour do."""
    limits = {
        "max_split_size_mb": settings.max_split_bytes,
        "max_non_split_rounding_mb": settings.max_non_split_rounding_bytes,
    }
    # The default of the second option can be below the size of a large segment, and PyTorch accepts that.
    for option, limit in limits.items():
        if limit < settings.large_segment_bytes and limit != AllocatorSettings.max_non_split_rounding_bytes:
            least = settings.large_segment_bytes // MIB
            raise UsageError(f"{option}:{limit // MIB} is too small; it must be at least {least}, a large segment")


# These options are about pinned host memory, locks, CUDA graphs, address space and how memory is shared. They do not
# change the size of the device memory of a training step.
WITHOUT_EFFECT = (
    "release_lock_on_cudamalloc",
    "release_lock_on_hipmalloc",
    "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register",
    "pinned_num_register_threads",
    "pinned_use_background_threads",
    "pinned_reserve_segment_size_mb",
    "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb",
    "pinned_free_catch_all",
    "graph_capture_record_stream_reuse",
    "expandable_segments_handle_type",
    "expandable_segments_reserve",
    "expandable_segments_reserve_by_class",
)

_PAIR = re.compile(r"([^:,\[\]]+):(\[[^\]]*\]|[^:,\[\]]*)(?:,|$)")


def _pairs(text: str) -> list[tuple[str, str]]:
    squeezed = re.sub(r"\s", "", text)
    pairs, position = [], 0
    while position < len(squeezed):
        match = _PAIR.match(squeezed, position)
        if match is None:
            raise UsageError(f"PYTORCH_ALLOC_CONF={text!r} cannot be read; write option:value,option:value")
        pairs.append((match[1], match[2]))
        position = match.end()
    return pairs


_Reader = Callable[[AllocatorSettings, str, str], AllocatorSettings]


def _mebibytes(field: str, smallest: int) -> _Reader:
    def read(settings: AllocatorSettings, option: str, value: str) -> AllocatorSettings:
        if not value.isdecimal() or int(value) < smallest:
            raise UsageError(f"{option}:{value} is out of range; give a number of MiB from {smallest} on")
        return replace(settings, **{field: int(value) * MIB})  # type: ignore[arg-type]  # an int field by name

    return read


def _fraction(field: str, one_allowed: bool) -> _Reader:
    def read(settings: AllocatorSettings, option: str, value: str) -> AllocatorSettings:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not (0 < number < 1 or (one_allowed and number in (0.0, 1.0))):
            raise UsageError(f"{option}:{value} is out of range; give a number between 0 and 1")
        return replace(settings, **{field: number})  # type: ignore[arg-type]  # a float field by name

    return read


def _expandable(settings: AllocatorSettings, option: str, value: str) -> AllocatorSettings:
    return replace(settings, expandable_segments=_boolean(option, value))


def _boolean(option: str, value: str) -> bool:
    if value not in ("True", "False"):
        raise UsageError(f"{option}:{value} must be True or False, with a capital letter as PyTorch wants it")
    return value == "True"


def _backend(settings: AllocatorSettings, option: str, value: str) -> AllocatorSettings:
    if value != "native":
        raise UsageError(f"the allocator {option}:{value} is not modelled; take it out of PYTORCH_ALLOC_CONF")
    return settings


def _early_refusal(settings: AllocatorSettings, option: str, value: str) -> AllocatorSettings:
    if _boolean(option, value):
        raise UsageError(f"{option}:True is not modelled; take it out of PYTORCH_ALLOC_CONF")
    return settings


def _divisions(settings: AllocatorSettings, option: str, value: str) -> AllocatorSettings:
    """Read `4` or `[256:1,512:2,>:4]`, sizes in MiB (`parseRoundUpPower2Divisions`)."""
    if not value.startswith("["):
        return replace(settings, roundup_divisions=(_power(option, value, 1),) * ROUNDING_INTERVALS)
    table, last = [0] * ROUNDING_INTERVALS, -1
    for pair in filter(None, value.strip("[]").split(",")):
        boundary, _, text = pair.partition(":")
        divisions = _power(option, text, 0)
        if boundary == ">":
            table[last + 1 :] = [divisions] * (ROUNDING_INTERVALS - last - 1)
            continue
        index = min(_power(option, boundary, 1).bit_length() - 1, ROUNDING_INTERVALS - 1)
        if last < 0:
            table[:index] = [divisions] * index
        table[index], last = divisions, index
    return replace(settings, roundup_divisions=tuple(table))


def _power(option: str, text: str, smallest: int) -> int:
    number = int(text) if text.isdecimal() else -1
    if number < smallest or number & (number - 1):
        raise UsageError(f"{option}: {text!r} is not a power of two; write for example {option}:[256:1,512:2,>:4]")
    return number


_READERS: dict[str, _Reader] = {
    "max_split_size_mb": _mebibytes("max_split_bytes", 20),
    "max_non_split_rounding_mb": _mebibytes("max_non_split_rounding_bytes", 20),
    "large_segment_size_mb": _mebibytes("large_segment_bytes", LARGE_LIMIT // MIB + 1),
    "garbage_collection_threshold": _fraction("garbage_collection_threshold", one_allowed=False),
    "per_process_memory_fraction": _fraction("memory_fraction", one_allowed=True),
    "roundup_power2_divisions": _divisions,
    "expandable_segments": _expandable,
    "backend": _backend,
    "throw_on_cudamalloc_oom": _early_refusal,
}
