"""Numbers and phase names as the reports print them; sizes are `memprof.units.format_size`."""

from __future__ import annotations

from memprof.results import Environment
from memprof.units import format_size

ABSENT = "-"
_PHASES = {
    "build": "building the model",
    "batch": "making the batch",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "clip": "gradient clipping",
    "optimizer": "the optimizer step",
    "zero_grad": "zeroing the gradients",
}


def format_share(share: float | None) -> str:
    """Return a share as a percentage of two significant digits below 10 %: `0.13 %`, `8.4 %`, `100 %`."""
    if share is None:
        return ABSENT
    percent = 100 * share
    if percent == 0 or percent >= 9.95:
        return f"{percent:.0f} %"
    if percent >= 0.995:
        return f"{percent:.1f} %"
    return f"{percent:.2f} %" if percent >= 0.005 else "<0.01 %"


def tick_size(size_bytes: int) -> str:
    """Return a size at an axis without needless digits: `1.5 GiB`, `512 MiB`, `0`."""
    return format_size(size_bytes, 1).replace(".0 ", " ") if size_bytes else "0"


def format_seconds(seconds: float | None) -> str:
    """Return a duration in three significant digits: `845 us`, `12.3 ms`, `1.23 s`."""
    if seconds is None:
        return ABSENT
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds)} s"


def format_count(count: int | None) -> str:
    """Return a count in three significant digits with the field's letters: `350M`, `1.24B`."""
    if count is None:
        return ABSENT
    for letter, factor in (("", 1), ("K", 1e3), ("M", 1e6), ("B", 1e9)):
        if count < 999.5 * factor:
            return str(count) if factor == 1 else f"{_three_digits(count / factor)}{letter}"
    return f"{_three_digits(count / 1e12)}T"


def format_loss(loss: float | None) -> str:
    """Return a loss in four significant digits."""
    return ABSENT if loss is None else f"{loss:#.4g}"


def category_title(category: str) -> str:
    """Return a category of the breakdown as a heading: `optimizer_state` is `optimizer state`."""
    return category.replace("_", " ")


def phase_words(phase: str) -> str:
    """Return a phase as it reads in a sentence: `backward` is `the backward pass`."""
    return _PHASES.get(phase, phase.replace("_", " "))


def made_where(source: str, device: str) -> str:
    """Return how figures came about: `measured on cpu`, `predicted for rtx-4090`."""
    return f"{source} {'on' if source == 'measured' else 'for'} {device}"


def processor_words(environment: Environment) -> str:
    """Return what decides which kernels run on a CPU: `AMD EPYC with AVX2, 2 cores, 2 threads`."""
    instructions = f" with {environment.instruction_set}" if environment.instruction_set else ""
    return f"{environment.processor}{instructions}, {environment.cores} cores, {environment.threads} threads"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
