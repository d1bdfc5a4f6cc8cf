"""Sizes, shares, durations and counts as text. Sizes are `int` bytes inside memprof and IEC units when printed."""

from __future__ import annotations

import re

from memprof.errors import UsageError

ABSENT = "-"
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(text: str) -> int:
    """Return the bytes that a size such as `24GiB`, `1.5 MB` or `4096` means.

    `GiB` is 2**30 bytes and `GB` is 10**9 bytes. A number without a unit is in bytes. Case does not matter.

    Args:
        text: the size.

    Raises:
        UsageError: the text is not a size, or its unit is unknown.
    """
    match = _SIZE.fullmatch(text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a size; write for example 24GiB (2^30), 24GB (10^9) or a number of bytes")
    return round(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_size(size_bytes: int | None, decimals: int = 2) -> str:
    """Return a size in the largest IEC unit that keeps the number at 1 or more; `-` if there is no figure.

    Args:
        size_bytes: the size in bytes, or None.
        decimals: the number of decimals from 1 KiB on.
    """
    if size_bytes is None:
        return ABSENT
    if abs(size_bytes) < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(value) < 1023.995:
            return f"{value:.{decimals}f} {unit}"
    return f"{value / 1024:.{decimals}f} TiB"


def format_share(share: float | None) -> str:
    """Return a share as a percentage, below 10 % with two significant digits: `0.13 %`, `8.4 %`, `100 %`.

    Args:
        share: the share, where 1 is the whole, or None.
    """
    if share is None:
        return ABSENT
    percent = 100 * share
    if percent == 0 or percent >= 9.95:
        return f"{percent:.0f} %"
    if percent >= 0.995:
        return f"{percent:.1f} %"
    return f"{percent:.2f} %" if percent >= 0.005 else "<0.01 %"


def tick_size(size_bytes: int) -> str:
    """Return a size for an axis, without needless digits: `1.5 GiB`, `512 MiB`, `0`.

    Args:
        size_bytes: the size in bytes.
    """
    return format_size(size_bytes, 1).replace(".0 ", " ") if size_bytes else "0"


def format_seconds(seconds: float | None) -> str:
    """Return a duration with three significant digits: `845 us`, `12.3 ms`, `1.23 s`.

    Args:
        seconds: the duration in seconds, or None.
    """
    if seconds is None:
        return ABSENT
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds)} s"


def format_count(count: int | None) -> str:
    """Return a count with three significant digits and the usual letters: `350M`, `1.24B`.

    Args:
        count: the count, or None.
    """
    if count is None:
        return ABSENT
    for letter, factor in (("", 1), ("K", 1e3), ("M", 1e6), ("B", 1e9)):
        if count < 999.5 * factor:
            return str(count) if factor == 1 else f"{_three_digits(count / factor)}{letter}"
    return f"{_three_digits(count / 1e12)}T"


def format_loss(loss: float | None) -> str:
    """Return a loss with four significant digits.

    Args:
        loss: the loss, or None.
    """
    return ABSENT if loss is None else f"{loss:#.4g}"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
