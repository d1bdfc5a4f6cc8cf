"""Sizes: `int` bytes inside, IEC units when printed. The one parser and the one formatter."""

from __future__ import annotations

import re

from memprof.errors import UsageError

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

    `GiB` is 2**30 bytes, `GB` is 10**9; a bare number is bytes; case does not matter.

    Raises:
        UsageError: the text is no size, or its unit is unknown.
    """
    match = _SIZE.fullmatch(text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a size; write for example 24GiB (2^30), 24GB (10^9) or a number of bytes")
    return round(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_size(size_bytes: int | None, decimals: int = 2) -> str:
    """Return bytes in the largest IEC unit that keeps the number at 1 or more; `-` for an absent figure."""
    if size_bytes is None:
        return "-"
    if abs(size_bytes) < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(value) < 1023.995:
            return f"{value:.{decimals}f} {unit}"
    return f"{value / 1024:.{decimals}f} TiB"
