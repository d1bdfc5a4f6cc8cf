"""Optimizer specs: `NAME_OR_IMPORT_PATH[,key=value]*`, parsed without importing torch."""

from __future__ import annotations

import math
import re
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

from memprof.errors import UsageError

Scalar: TypeAlias = bool | int | float | str | None
OptionValue: TypeAlias = Scalar | list[Scalar | list[Scalar]]

DEFAULT_OPTIMIZERS = ("sm3", "sm3,momentum=0.9", "adam", "adagrad", "adafactor", "sgd")

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_IMPORT_PATH = re.compile(r"(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|.+\.py):[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_CLOSING = {"(": ")", "[": "]"}
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None}
_EXAMPLE = "write for example sm3,momentum=0.9 or adam,betas=(0.9,0.95)"


class OptimizerSpec(BaseModel):
    """An optimizer and its options, as the user wrote them.

    Attributes:
        text: The canonical spelling, which is the same for all spellings of a spec: `Adam, lr=1e-3` becomes
            `adam,lr=0.001`.
        name: A name of the registry in lower case, or an import path `pkg.mod:Class` or `file.py:Class`.
        options: The keyword arguments of the constructor. Tuples are stored as lists, because JSON has no tuples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    name: str
    options: dict[str, OptionValue] = {}

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def is_import_path(self) -> bool:
        """Whether `name` is an import path and not a name of the registry."""
        return ":" in self.name


def parse_optimizer(text: str) -> OptimizerSpec:
    """Parse a spec such as `sm3,momentum=0.9` or `torch.optim:AdamW,betas=(0.9,0.95)`.

    A value is an int, a float, `true`, `false` or `none` in any case, a tuple in round or square brackets, or a string.
    A string may be quoted; quotes make `"1"` and `"true"` strings. Commas inside brackets and quotes do not separate
    options.

    Args:
        text: The spec, as the user wrote it.

    Raises:
        UsageError: The text does not follow the grammar, gives an option twice, or contains inf or nan.
    """
    head, *items = [part.strip() for part in _split(text, text)]
    name = _parse_name(head, text)
    options: dict[str, OptionValue] = {}
    for item in items:
        key, value = _parse_option(item, text)
        if key in options:
            raise UsageError(f"optimizer {text!r} gives the option {key!r} twice; keep one of them")
        options[key] = value
    parts = [name, *(f"{key}={_format(value)}" for key, value in options.items())]
    return OptimizerSpec(text=",".join(parts), name=name, options=options)


def _parse_name(head: str, text: str) -> str:
    if _IMPORT_PATH.fullmatch(head):
        return head
    if _NAME.fullmatch(head):
        return head.lower()
    if "=" in head:
        raise UsageError(f"optimizer {text!r} begins with an option; the name comes first: {_EXAMPLE}")
    raise UsageError(f"optimizer {text!r} is no name and no import path such as pkg.mod:Class; {_EXAMPLE}")


def _parse_option(item: str, text: str) -> tuple[str, OptionValue]:
    key, equals, value = item.partition("=")
    key = key.strip()
    if not equals or not key.isidentifier():
        raise UsageError(f"optimizer {text!r}: {item!r} is not key=value; {_EXAMPLE}")
    return key, _parse_value(value.strip(), f"optimizer {text!r}: option {key!r}")


def _parse_value(value: str, where: str) -> OptionValue:
    if value[:1] in _CLOSING:
        return _parse_list(value, where)
    return _parse_scalar(value, where)


def _parse_list(value: str, where: str) -> list[Scalar | list[Scalar]]:
    if value[-1] != _CLOSING[value[0]]:
        raise UsageError(f"{where} has text after its closing bracket: {value!r}")
    parts = [part.strip() for part in _split(value[1:-1], value)]
    if parts[-1] == "":  # `(1,)` and `()`
        parts.pop()
    items: list[Scalar | list[Scalar]] = []
    for part in parts:
        item = _parse_value(part, where)
        if isinstance(item, list) and any(isinstance(inner, list) for inner in item):
            raise UsageError(f"{where} nests brackets deeper than two levels: {value!r}")
        items.append(item)  # type: ignore[arg-type]  # the check above leaves at most one inner level
    return items


def _parse_scalar(value: str, where: str) -> Scalar:
    if value == "":
        raise UsageError(f"{where} has an empty value; give it one, or write '' for the empty string")
    if value[0] in "'\"":
        if value[-1] != value[0] or value.count(value[0]) != 2:
            raise UsageError(f"{where} has text after its closing quote: {value}")
        return value[1:-1]
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    return _parse_number(value, where)


def _parse_number(value: str, where: str) -> int | float | str:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        raise UsageError(f"{where} must be finite, not {value}; quote it if a string is meant")
    return number


def _split(text: str, whole: str) -> list[str]:
    """Split a text at the commas outside brackets and quotes; `whole` is the text that error messages show."""
    parts, closers, quote, start = [], "", "", 0
    for position, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in _CLOSING:
            closers += _CLOSING[char]
        elif char in ")]":
            if not closers.endswith(char):
                raise UsageError(f"unbalanced {char!r} in {whole!r}; {_EXAMPLE}")
            closers = closers[:-1]
        elif char == "," and not closers:
            parts.append(text[start:position])
            start = position + 1
    if quote or closers:
        raise UsageError(f"{quote or closers[-1]!r} is missing in {whole!r}; {_EXAMPLE}")
    return [*parts, text[start:]]


def _format(value: OptionValue | list[Scalar]) -> str:
    """Return the canonical spelling of a value, which parses back to the same value."""
    if isinstance(value, list):
        return f"({','.join(_format(item) for item in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, str):
        return value if _reads_bare(value) else _quote(value)
    return str(value).lower() if value is None or isinstance(value, bool) else repr(value)


def _reads_bare(value: str) -> bool:
    if not re.fullmatch(r"[^\s,'\"()\[\]]+", value) or value.lower() in _WORDS:
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _quote(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"
