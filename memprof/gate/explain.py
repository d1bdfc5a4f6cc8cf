"""Explains why a figure grew: which categories and modules hold more than before. `gate` and `diff` share it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from memprof.documents.wording import category_title, phase_words
from memprof.gate.entry_figures import Holders, Record
from memprof.gate.metrics import Metric
from memprof.units import format_size

# A module is named if it and its submodules account for this share of the category's change.
_DOMINANT = 0.75
# Causes smaller than this share of the largest cause are left out.
_MINOR = 0.05
_MOST = 4


@dataclass(frozen=True)
class Cause:
    """A category whose size changed.

    Attributes:
        category: A category of the breakdown, or the difference between two layers of memory.
        change_bytes: The signed change.
        module: The innermost module that accounts for most of the change, with `*` for a block number; the empty
            string if there is none.
        module_bytes: The module's part of the change, or None if only an approximate part is known.
    """

    category: str
    change_bytes: int
    module: str = ""
    module_bytes: int | None = 0

    def sentence(self) -> str:
        """Return the cause in words, such as `activations +1.20 GiB in model.layers.*.mlp`."""
        text = f"{category_title(self.category)} {signed(self.change_bytes)}"
        if not self.module:
            return text
        if self.module_bytes is None:
            return f"{text}, most of it in {self.module}"
        part = "" if self.module_bytes == self.change_bytes else f", {signed(self.module_bytes)} of it"
        return f"{text}{part} in {self.module}"


def signed(size_bytes: int) -> str:
    """Return a change of bytes with its sign: `+1.20 GiB`."""
    return f"{'-' if size_bytes < 0 else '+'}{format_size(abs(size_bytes))}"


def causes(old: Holders, new: Holders) -> list[Cause]:
    """Return the categories whose size changed, the largest change first."""
    found = []
    for category in sorted({*old, *new}):
        before, after = Counter(old.get(category, {})), Counter(new.get(category, {}))
        change = after.total() - before.total()
        if change:
            after.subtract(before)
            module, part = _dominant(after, change)
            found.append(Cause(category, change, module, part))
    return sorted(found, key=lambda cause: -abs(cause.change_bytes))


def explain(metric: Metric, old: Record, new: Record) -> list[str]:
    """Explain how a figure changed from one record to another.

    Causes that have the direction of the change come first. Causes in the other direction are included only if they
    are large.

    Args:
        metric: The figure.
        old: The earlier record.
        new: The later record.

    Returns:
        Phrases about the causes, the largest first, and then about what else changed.
    """
    before, after = old.values.get(metric.name), new.values.get(metric.name)
    rising = before is None or after is None or (after > before) is not metric.higher_is_better
    found = causes(old.holders, new.holders) + _between_layers(metric, old, new)
    if metric.category is not None and before is not None and after is not None:
        found = [_exactly(cause, after - before) for cause in found if cause.category == metric.category]
    found.sort(key=lambda cause: -cause.change_bytes if rising else cause.change_bytes)
    largest = max((abs(cause.change_bytes) for cause in found), default=0)
    told = [cause for cause in found if abs(cause.change_bytes) >= _MINOR * largest][:_MOST]
    return [cause.sentence() for cause in told] + context(old, new)


def context(old: Record, new: Record) -> list[str]:
    """Return what else changed between two records: the setup, the device, the phase of the peak, and the versions."""
    said = old.setup.differences(new.setup)
    said += [f"device {old.device} is now {new.device}"] if old.device != new.device else []
    if old.phase != new.phase and old.phase and new.phase:
        said.append(f"the peak moved from {phase_words(old.phase)} to {phase_words(new.phase)}")
    return said + old.fingerprint.differences(new.fingerprint)


def largest_holders(metric: Metric, record: Record) -> list[str]:
    """Return the categories that hold the most memory, for a record that has nothing to be compared with."""
    held = [
        (category, Counter(modules))
        for category, modules in record.holders.items()
        if metric.category in (None, category)
    ]
    held.sort(key=lambda pair: -pair[1].total())
    sentences = []
    for category, modules in held[:_MOST]:
        total = modules.total()
        module, part = _dominant(modules, total)
        of_it = "" if part == total else f", {format_size(part)} of it"
        sentences.append(f"{category_title(category)} {format_size(total)}{f'{of_it} in {module}' if module else ''}")
    return sentences


def _exactly(cause: Cause, change_bytes: int) -> Cause:
    """Return a cause with the change of the figure itself.

    The holders are counted in blocks of the allocator, which are larger than the tensors inside them.
    """
    if cause.change_bytes == change_bytes:
        return cause
    return Cause(cause.category, change_bytes, cause.module, None)


def _between_layers(metric: Metric, old: Record, new: Record) -> list[Cause]:
    """Return the change of the difference between the allocated bytes and an outer layer of memory."""
    names = {"peak_reserved_bytes": "reserved, not in use", "process_bytes": "process, outside the allocated bytes"}
    if metric.name not in names:
        return []
    inner = ("peak_allocated_bytes", metric.name)
    try:
        gap_before, gap_after = (record.values[inner[1]] - record.values[inner[0]] for record in (old, new))
    except KeyError:
        return []
    change = gap_after - gap_before
    return [Cause(names[metric.name], change)] if change else []


def _dominant(changes: Counter[str], total: int) -> tuple[str, int]:
    """Return the innermost module that, with its submodules, accounts for most of a total, and its bytes.

    The module is the empty string if there is none.
    """
    name, part = "", 0
    while True:
        below: Counter[str] = Counter()
        for module, size in changes.items():
            child = _child(module, name)
            if child is not None:
                below[child] += size
        best = max(below, key=lambda child: below[child] / total, default=None)
        if best is None or below[best] / total < _DOMINANT:
            return name, part
        name, part = best, below[best]


def _child(module: str, above: str) -> str | None:
    """Return the direct child of `above` that contains a module, or None if the module is not below `above`."""
    if not module or module == above:
        return None
    if above and not module.startswith(f"{above}."):
        return None
    rest = module[len(above) + 1 :] if above else module
    first = rest.partition(".")[0]
    return f"{above}.{first}" if above else first
