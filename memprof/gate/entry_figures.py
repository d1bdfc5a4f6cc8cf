"""The figures of an entry as flat data. The verdicts are computed from them, and a baseline stores them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from memprof.documents.comparison import Comparison, Environment, Run
from memprof.documents.confidence import Document
from memprof.documents.script import ScriptInfo
from memprof.documents.timeline import fold_blocks
from memprof.gate.config import Budget
from memprof.gate.metrics import ANY, METRICS, Source

# Bytes by category and module. Modules that differ only in their block number are added up (`layers.*.mlp`).
Holders = dict[str, dict[str, int]]


class Fingerprint(Document):
    """The environment that measured figures depend on. The device that figures are for is in `Record`.

    The fields about a GPU are null for measurements on a CPU and for predictions.

    Attributes:
        torch: The version of PyTorch.
        cuda: The version of CUDA.
        driver: The version of the GPU driver.
        gpu: The name of the GPU.
        gpu_memory_bytes: The memory of the GPU.
        allocator_conf: The settings of the caching allocator; null for figures on the CPU.
    """

    torch: str
    cuda: str | None = None
    driver: str | None = None
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    allocator_conf: str | None = None

    def differences(self, other: Fingerprint) -> list[str]:
        """Return the differences from a newer fingerprint, as `torch 2.13.0 is now 2.15.0`."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [f"{name} {mine[name]} is now {theirs[name]}" for name in mine if mine[name] != theirs[name]]


class EntrySetup(Document):
    """What was trained; of the recipe only what is not the default.

    Attributes:
        model: the MODEL argument, or the script with its arguments.
        knobs: of the model.
        batch_size: of each micro-batch; null for a script, which has its own.
        recipe: how it was trained.
    """

    model: str
    knobs: dict[str, Any] = Field(default_factory=dict)
    batch_size: int | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)

    def differences(self, other: EntrySetup) -> list[str]:
        """Return the differences from a newer setup, as `batch_size 8 is now 16`."""
        mine, theirs = self._flat(), other._flat()
        names = sorted(set(mine) | set(theirs))
        return [
            f"{name} {mine.get(name, 'unset')} is now {theirs.get(name, 'unset')}"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]

    def _flat(self) -> dict[str, Any]:
        if self.batch_size is None:
            return {"script": self.model, **self.knobs, **self.recipe}
        return {"model": self.model, "batch_size": self.batch_size, **self.knobs, **self.recipe}


class Record(Document):
    """The figures of one optimizer in one entry.

    Attributes:
        source: `measured` or `predicted`.
        device: The device that it was trained on or predicted for.
        fingerprint: The environment in which the figures were made.
        setup: What was trained.
        values: The figures by metric. Metrics that the run has no figure for are left out.
        unlimited: The metrics of searches that found no largest value, because the knob does not change the peak.
        phase: The phase that sets the peak.
        holders: The memory at the peak by category and module.
    """

    source: Source
    device: str
    fingerprint: Fingerprint
    setup: EntrySetup
    values: dict[str, NonNegativeInt] = Field(default_factory=dict)
    unlimited: list[str] = Field(default_factory=list)
    phase: str | None = None
    holders: Holders = Field(default_factory=dict)


class Figures(Record):
    """The record of a run of the gate, or the reason why the run has none.

    Attributes:
        entry: The name of the budget.
        optimizer: The optimizer spec.
        status: The status of the run. A run with `oom` has figures as well if they could be predicted for a larger
            device.
        reason: Why the run failed.
        mistake: Whether the fault lies in the arguments or in the model's own code. The exit code is then 2, not 3.
        capacity_bytes: The memory that was available.
        notes: Remarks for the reader.
    """

    entry: str
    optimizer: str
    status: Literal["ok", "oom", "failed"] = "ok"
    reason: str | None = None
    mistake: bool = False
    capacity_bytes: int | None = None
    notes: list[str] = Field(default_factory=list)

    def record(self) -> Record:
        """Return the part that a baseline stores."""
        return Record(**{name: getattr(self, name) for name in Record.model_fields})


def figures_of(entry: str, comparison: Comparison) -> list[Figures]:
    """Return the figures of every run of a comparison."""
    return [_figures(entry, comparison, run) for run in comparison.runs]


def _figures(entry: str, comparison: Comparison, run: Run) -> Figures:
    values = {metric.name: metric.read(run) for metric in METRICS.values()}
    return Figures(
        entry=entry,
        optimizer=run.optimizer.spec,
        device=run.device,
        source=run.source,
        status=run.status,
        reason=run.reason,
        fingerprint=_fingerprint(comparison.environment, run),
        setup=_setup(comparison),
        values={name: value for name, value in values.items() if isinstance(value, int)},
        unlimited=[name for name, value in values.items() if value == ANY],
        phase=run.peak.phase if run.peak is not None else None,
        holders=_holders(run),
        capacity_bytes=comparison.capacity.bytes,
        notes=run.notes,
    )


def wanted_setup(budget: Budget) -> EntrySetup:
    """Return what an entry says is to be trained."""
    settings = budget.settings
    if budget.script is not None:
        info = ScriptInfo(program=budget.script.name, arguments=budget.script.arguments)
        return EntrySetup(model=info.command)
    return EntrySetup(
        model=settings.model or "",
        knobs=dict(settings.knobs),
        batch_size=settings.batch_size,
        recipe=budget.recipe.model_dump(mode="json", exclude_defaults=True),
    )


def _setup(comparison: Comparison) -> EntrySetup:
    workload, recipe = comparison.workload, comparison.recipe
    if workload is None or recipe is None:
        return EntrySetup(model=comparison.subject, knobs=dict(comparison.script.knobs) if comparison.script else {})
    return EntrySetup(
        model=workload.model,
        knobs=workload.knobs,
        batch_size=workload.batch_size,
        recipe=recipe.model_dump(mode="json", exclude_defaults=True),
    )


def _fingerprint(environment: Environment, run: Run) -> Fingerprint:
    on_gpu = run.source == "measured" and run.device.startswith("cuda")
    return Fingerprint(
        torch=environment.torch,
        cuda=environment.cuda if on_gpu else None,
        driver=environment.driver if on_gpu else None,
        gpu=environment.gpu if on_gpu else None,
        gpu_memory_bytes=environment.gpu_memory_bytes if on_gpu else None,
        allocator_conf=environment.allocator_conf if run.device != "cpu" else None,
    )


def _holders(run: Run) -> Holders:
    """Return the breakdown by category and module, with the modules of all blocks added up.

    A breakdown without modules gives its categories.
    """
    if run.breakdown is None:
        return {}
    table = run.breakdown.by_category_and_module
    if not table:
        return {category: {"": size} for category, size in run.breakdown.by_category.items() if size}
    names = fold_blocks(module for modules in table.values() for module in modules)
    folded: Holders = {}
    for category, modules in table.items():
        sizes: Counter[str] = Counter()
        for module, size in modules.items():
            sizes[names[module]] += size
        folded[category] = {module: size for module, size in sizes.items() if size}
    return {category: modules for category, modules in folded.items() if modules}


def best_of(repeats: Sequence[Figures]) -> Figures:
    """Combine repeated measurements of one run, and note where they differ.

    Resident memory can only be measured too high, so its smallest value counts. Of every other figure the worst value
    counts. If a repeat failed, the answer is that repeat.

    Args:
        repeats: The figures of each repeat; at least one.

    Returns:
        One set of figures.
    """
    broken = next((figures for figures in repeats if figures.status != "ok"), None)
    if broken is not None or len(repeats) == 1:
        return broken or repeats[0]
    first = repeats[0]
    values, notes = {}, list(first.notes)
    for name, metric in METRICS.items():
        found = [figures.values[name] for figures in repeats if name in figures.values]
        if len(found) == len(repeats):
            values[name] = metric.best_of(found)
        if len(set(found)) > 1:
            chosen = "the least" if values.get(name) == min(found) else "the most"
            spread = f"{metric.text(min(found))} to {metric.text(max(found))}"
            notes.append(f"{metric.title} differs between {len(repeats)} repeats, {spread}: {chosen} counts.")
    return first.model_copy(update={"values": values, "notes": notes})
