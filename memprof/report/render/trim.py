"""GitHub's limits on the length of what is shown, and how to keep within them.

GitHub drops a step summary above 1024 KiB as a whole, and refuses a comment above 65,536 characters. So a text is
offered in several lengths, and the longest that fits is taken.
"""

from __future__ import annotations

from collections.abc import Iterable

COMMENT_BYTES = 60_000
SUMMARY_BYTES = 1_000_000


def trim(rungs: Iterable[str], limit_bytes: int) -> str:
    """Return the first text within a limit of UTF-8 bytes; the last one cut, where none is.

    Args:
        rungs: the same thing to say, in ever fewer words.
        limit_bytes: how long it may be.
    """
    text = ""
    for text in rungs:
        if len(text.encode("utf-8", "replace")) <= limit_bytes:
            return text
    mark = "\n\n(cut off: too long)\n"
    return text.encode("utf-8", "replace")[: limit_bytes - len(mark)].decode("utf-8", "ignore") + mark
