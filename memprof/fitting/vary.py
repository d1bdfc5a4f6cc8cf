"""What is varied: `--vary KNOB[=LO:HI[:STEP]]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from memprof.errors import UsageError, did_you_mean

BATCH = "batch_size"
HIGHEST = 65_536
_TEXT = re.compile(r"(?P<knob>[A-Za-z_]\w*)(=(?P<low>-?\d+):(?P<high>-?\d+)(:(?P<step>-?\d+))?)?")


class Vary(BaseModel):
    """A knob and the values that may be tried: `low`, `low + step` and so on, up to `high`.

    Attributes:
        knob: `batch_size`, or an integer knob of the workload.
        low: the smallest value.
        high: the largest value.
        step: between neighbours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    knob: str = BATCH
    low: int = 1
    high: int = HIGHEST
    step: int = 1

    @property
    def last(self) -> int:
        """The largest value on the grid."""
        return self.below(self.high)

    def __contains__(self, value: int) -> bool:
        """Say whether a value may be tried."""
        return self.low <= value <= self.high and (value - self.low) % self.step == 0

    def below(self, value: int) -> int:
        """Return the largest value on the grid that is at most the given one, `low` at least."""
        return self.low + max(0, (min(value, self.high) - self.low) // self.step) * self.step

    def __str__(self) -> str:
        suffix = f":{self.step}" if self.step != 1 else ""
        return f"{self.knob}={self.low}:{self.high}{suffix}"


def parse_vary(text: str) -> Vary:
    """Return what a text such as `batch_size`, `seq_len=128:4096:128` or `n_layers=1:96` varies.

    Without a range every value from 1 to 65,536 may be tried.

    Raises:
        UsageError: it is of another form, or the range is empty, or zero or negative.
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


def check_knob(vary: Vary, owner: str, knobs: Mapping[str, Any]) -> None:
    """Refuse a knob that the workload does not have, or that is no whole number.

    Raises:
        UsageError: see above.
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
