"""The option `--margin`: memory that an answer must leave free."""

from __future__ import annotations

import re

from memprof.errors import UsageError
from memprof.units import format_size, parse_size

_SHARE = re.compile(r"\s*(\d+(\.\d+)?)\s*%\s*")


def usable_bytes(capacity_bytes: int, margin: str) -> int:
    """Return a capacity less the margin, in bytes.

    Args:
        capacity_bytes: the memory available.
        margin: a share such as `5%`, or a size such as `1GiB`.

    Raises:
        UsageError: the margin is neither a share nor a size, or it takes the whole capacity.
    """
    share = _SHARE.fullmatch(margin)
    try:
        free = round(capacity_bytes * float(share[1]) / 100) if share else parse_size(margin)
    except UsageError:
        raise UsageError(f"--margin {margin}: write a share such as 5% or a size such as 1GiB") from None
    if free >= capacity_bytes:
        raise UsageError(f"--margin {margin} leaves nothing of {format_size(capacity_bytes)}; give less")
    return capacity_bytes - free
