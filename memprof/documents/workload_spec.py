"""What the user asked to train: a model, its knobs and its inputs, as plain data that is sent between processes."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

from memprof.errors import UsageError

KnobValue = int | float | bool | str

_INT = re.compile(r"[+-]?\d+(_\d+)*")
_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=e))(e[+-]?\d+)?", re.IGNORECASE)


class WorkloadSpec(BaseModel):
    """A workload as named on the command line or in a configuration file.

    Attributes:
        model: A built-in name, `path/to/file.py:attr`, `package.module:attr` or `hf:PATH_OR_ID`.
        knobs: The knobs that `--set KEY=VALUE` sets. All other knobs keep their defaults.
        inputs: The inputs of a plain module, one `--input` text each (grammar: `memprof.workloads.tensor_grammar`).
        target: The tensor that the loss compares a plain module's output with, in the same grammar.
        longest: Whether batches are made by the workload's `longest_batch`, where it has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    knobs: dict[str, KnobValue] = {}
    inputs: tuple[str, ...] = ()
    target: str | None = None
    longest: bool = False


def parse_knobs(items: list[str]) -> dict[str, KnobValue]:
    """Parse the `KEY=VALUE` texts of `--set`.

    Args:
        items: The texts. A value is read as an int (`12`, `1_000`), a float (`0.1`, `3e-4`), a bool (`true`, `false`),
            or otherwise a string.

    Raises:
        UsageError: An item is not a `KEY=VALUE`, a key is given twice, or the key is `batch_size`.
    """
    knobs: dict[str, KnobValue] = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier():
            raise UsageError(f"--set takes KEY=VALUE, for example --set n_layers=12, not {item!r}")
        if key in knobs:
            raise UsageError(f"--set {key} is given twice; keep one")
        if key == "batch_size":
            raise UsageError(f"the batch size is not set with --set; write --batch-size {value or 'N'}")
        knobs[key] = _parse_value(value)
    return knobs


def _parse_value(text: str) -> KnobValue:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
