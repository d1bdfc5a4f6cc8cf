"""The knob that is varied and its range: `--vary KNOB[=LO:HI[:STEP]]`."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isqrt
from typing import Any

from pydantic import BaseModel, ConfigDict

from memprof.documents.recipe import Recipe
from memprof.errors import UsageError, did_you_mean

BATCH = "batch_size"
HIGHEST = 65_536
_TEXT = re.compile(r"(?P<knob>[A-Za-z_]\w*)(=(?P<low>-?\d+):(?P<high>-?\d+)(:(?P<step>-?\d+))?)?")


class Vary(BaseModel):
    """A knob and the values that may be tried: `low`, `low + step` and so on, up to `high`.

    Attributes:
        knob: `batch_size`, or an integer knob of the workload.
        low: The smallest value.
        high: The largest value that is allowed.
        step: The distance between neighbouring values.
        samples: For a batch size, the samples of one optimizer step on each rank. Only divisors of this number are
            tried, and the number of micro-batches follows from it. None if the number of micro-batches is constant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    knob: str = BATCH
    low: int = 1
    high: int = HIGHEST
    step: int = 1
    samples: int | None = None

    @cached_property
    def values(self) -> Sequence[int]:
        """All values that may be tried, in ascending order."""
        grid = range(self.low, self.high + 1, self.step)
        return grid if self.samples is None else [value for value in _divisors(self.samples) if value in grid]

    @property
    def last(self) -> int:
        """The largest value that may be tried."""
        return self.values[-1]

    def __contains__(self, value: int) -> bool:
        """Return whether a value may be tried."""
        return value in self.values

    def below(self, value: int) -> int:
        """Return the largest value that may be tried and is at most the given one; the smallest if there is none."""
        return self.values[max(0, bisect_right(self.values, value) - 1)]

    def between(self, low: int, high: int) -> Sequence[int]:
        """Return the values that may be tried from `low` to `high`, both included."""
        return self.values[bisect_left(self.values, low) : bisect_right(self.values, high)]

    def __str__(self) -> str:
        suffix = f":{self.step}" if self.step != 1 else ""
        return f"{self.knob}={self.low}:{self.high}{suffix}"


def parse_vary(text: str) -> Vary:
    """Parse a text such as `batch_size`, `seq_len=128:4096:128` or `n_layers=1:96`.

    Args:
        text: The text. Without a range, every value from 1 to 65,536 may be tried.

    Raises:
        UsageError: The text has another form, the range is empty, or LO or STEP is below 1.
    """
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--vary takes KNOB or KNOB=LO:HI or KNOB=LO:HI:STEP, for example n_layers=1:96, not {text!r}")
    numbers = {name: int(value) for name, value in found.groupdict().items() if name != "knob" and value is not None}
    vary = Vary(knob=found["knob"], **numbers)
    for name, value in (("LO", vary.low), ("STEP", vary.step)):
        if value < 1:
            raise UsageError(f"--vary {text}: {name} is {value}; it must be at least 1")
    if vary.high < vary.low:
        raise UsageError(f"--vary {text}: HI is {vary.high}, below LO; give a range of at least one value")
    return vary


def with_global_batch(vary: Vary, global_batch: int, recipe: Recipe) -> Vary:
    """Limit the batch sizes to those that divide a global batch into whole micro-batches on every rank.

    Args:
        vary: The batch sizes that may be tried.
        global_batch: The samples of one optimizer step, over all ranks and micro-batches.
        recipe: The training recipe, which says how many ranks there are.

    Raises:
        UsageError: Another knob is varied, the recipe fixes the number of micro-batches, or no batch size divides the
            global batch.
    """
    ranks = recipe.world_size
    if vary.knob != BATCH:
        raise UsageError(f"--global-batch goes with --vary {BATCH}, and {vary.knob} leaves the batch as it is; drop it")
    if recipe.accumulate > 1:
        raise UsageError("--global-batch finds the number of micro-batches itself; leave --accumulate out")
    if recipe.step_in_backward:
        raise UsageError("--global-batch accumulates gradients, which --step-in-backward drops at once; give up one")
    if global_batch < 1 or global_batch % ranks:
        nearest = max(1, round(global_batch / ranks)) * ranks
        raise UsageError(f"--global-batch {global_batch} cannot be shared by {ranks} ranks evenly; give {nearest}")
    chosen = Vary(**{**vary.model_dump(), "samples": global_batch // ranks})
    if not chosen.values:
        raise UsageError(f"--vary {vary}: no batch size there divides the {chosen.samples} samples of each rank")
    return chosen


def _divisors(number: int) -> list[int]:
    small = [one for one in range(1, isqrt(number) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})


def check_knob(vary: Vary, owner: str, knobs: Mapping[str, Any]) -> None:
    """Check that the workload has the knob that is varied, and that its value is a whole number.

    Args:
        vary: The knob to check.
        owner: The name of the workload, for the message.
        knobs: The knobs of the workload with their values.

    Raises:
        UsageError: The workload has no such knob, or the knob is not a whole number.
    """
    if vary.knob == BATCH:
        return
    counts = [BATCH, *(name for name, value in knobs.items() if _is_count(value))]
    if vary.knob not in knobs:
        raise UsageError(f"{owner} has no knob {vary.knob!r}{did_you_mean(vary.knob, counts)}")
    if vary.knob not in counts:
        value = knobs[vary.knob]
        raise UsageError(f"--vary {vary.knob}: it is {value!r}, and whole numbers are searched: {', '.join(counts)}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
