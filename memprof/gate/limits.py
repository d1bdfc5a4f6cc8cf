"""Parses limits: a ceiling (`"20 GiB"`), growth against the baseline (`"+2%"`, `"+64MiB"`), or a list of both.

A figure that must not fall (`max_batch_size`) has a floor (`16`) and a loss (`"-5%"`, `"-2"`) instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from memprof.errors import UsageError, did_you_mean
from memprof.gate.metrics import Metric
from memprof.units import parse_size

Level = Literal["error", "warn", "off"]
LEVELS: tuple[Level, ...] = ("error", "warn", "off")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_TABLE_KEYS = ("limit", "level", "message")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One limit on one figure.

    Attributes:
        metric: The figure.
        text: The limit as the user wrote it.
        bound: The largest allowed value (for a figure that must not fall, the smallest); None for a limit on growth.
        share: How much the figure may get worse, as a share of the baseline; None for another kind of limit.
        amount: How much the figure may get worse, in bytes or as a count; None for another kind of limit.
        level: Whether a violation fails the build or only warns.
        message: A message of the user that is shown with a violation.
    """

    metric: Metric
    text: str
    bound: int | None = None
    share: Fraction | None = None
    amount: int | None = None
    level: Level = "error"
    message: str | None = None

    @property
    def relative(self) -> bool:
        """Whether the limit needs a baseline."""
        return self.bound is None

    def allowance(self, base: int) -> int:
        """Return by how much the figure may get worse than `base`, rounded down."""
        return int(base * self.share) if self.share is not None else self.amount or 0


def parse_limits(metric: Metric, value: Any, level: Level, message: str | None) -> list[Limit]:
    """Return the limits that a value of the configuration sets on a figure.

    Args:
        metric: The figure.
        value: A string, an integer, a list of them, or a table with `limit`, `level` and `message`.
        level: The level of the entry, which counts if the value does not set its own.
        message: The message of the entry, which counts if the value does not set its own.

    Returns:
        The limits; at most one bound and one limit on growth.

    Raises:
        UsageError: The value is not a limit, or it sets two limits of the same kind.
    """
    if isinstance(value, dict):
        level, message = _own_words(metric, value, level, message)
        value = value["limit"]
    items = value if isinstance(value, list) else [value]
    limits = [_parse(metric, item, level, message) for item in items]
    for relative, kind in ((False, "absolute limits"), (True, "limits on the change")):
        alike = [limit.text for limit in limits if limit.relative is relative]
        if len(alike) > 1:
            raise UsageError(f"{metric.name} has two {kind}, {' and '.join(map(repr, alike))}; keep one")
    return limits


def _own_words(metric: Metric, table: dict[str, Any], level: Level, message: str | None) -> tuple[Level, str | None]:
    unknown = next((key for key in table if key not in _TABLE_KEYS), None)
    if unknown is not None:
        raise UsageError(f"{metric.name} has no key {unknown!r}{did_you_mean(unknown, list(_TABLE_KEYS))}")
    if "limit" not in table:
        raise UsageError(f'{metric.name} lacks its limit; write for example {{ limit = "20 GiB", level = "warn" }}')
    own = table.get("level", level)
    if own not in LEVELS:
        raise UsageError(f"{metric.name} has level {own!r}{did_you_mean(str(own), list(LEVELS))}")
    text = table.get("message", message)
    if text is not None and not isinstance(text, str):
        raise UsageError(f"{metric.name} has the message {text!r}; a message is a text in quotes")
    return own, text


def _parse(metric: Metric, item: Any, level: Level, message: str | None) -> Limit:
    text = item.strip() if isinstance(item, str) else str(item)
    if not isinstance(item, (str, int)) or isinstance(item, bool) or not text:
        raise UsageError(f"{metric.name} = {item!r} is not a limit; {_example(metric)}")
    worse = "-" if metric.higher_is_better else "+"
    if text[0] in "+-":
        if text[0] != worse:
            better = "rise" if metric.higher_is_better else "fall"
            raise UsageError(
                f"{metric.name} = {text!r}: a limit says how far it may get worse, and it may always "
                f"{better}; write {worse}{text[1:].strip()}"
            )
        return _change(metric, text, level, message)
    if text.endswith("%"):
        raise UsageError(
            f"{metric.name} = {text!r} lacks its sign; write {worse}{text} for a change against the baseline"
        )
    return Limit(metric=metric, text=text, bound=_amount(metric, text), level=level, message=message)


def _change(metric: Metric, text: str, level: Level, message: str | None) -> Limit:
    size = text[1:].strip()
    share = _SHARE.fullmatch(size)
    if share is not None:
        return Limit(metric=metric, text=text, share=Fraction(share[1]) / 100, level=level, message=message)
    return Limit(metric=metric, text=text, amount=_amount(metric, size), level=level, message=message)


def _amount(metric: Metric, text: str) -> int:
    if not metric.in_bytes:
        if not text.isdecimal():
            raise UsageError(f"{metric.name} = {text!r} is not a whole number; {_example(metric)}")
        return int(text)
    if text.replace(".", "", 1).isdecimal():
        raise UsageError(f'{metric.name} = {text} has no unit; write "{text} GiB", or "{text} B" for bytes')
    try:
        return parse_size(text)
    except UsageError:
        raise UsageError(f"{metric.name} = {text!r} is not a limit; {_example(metric)}") from None


def _example(metric: Metric) -> str:
    if metric.higher_is_better:
        return 'write 16, "-5%" against the baseline, or both in a list'
    return 'write "20 GiB", "+2%" or "+64 MiB" against the baseline, or two of them in a list'
