"""The figures of an entry as flat, plain data: what verdicts are made of, and what a baseline stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from memprof.documents.comparison import Comparison, Environment, Run
from memprof.documents.confidence import Document
from memprof.documents.timeline import fold_blocks
from memprof.gate.metrics import ANY, METRICS, Source

Holders = dict[str, dict[str, int]]  # category -> module -> bytes; blocks that differ in their number stand together


class Fingerprint(Document):
    """Where figures were made, in so far as measured ones depend on it; the device of a prediction is in `Record`.

    What only a GPU has is null for measurements on a CPU and for predictions.
    """

    torch: str
    cuda: str | None = None
    driver: str | None = None
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    allocator_conf: str | None = None

    def differences(self, other: Fingerprint) -> list[str]:
        """Return what differs from another, as `torch 2.13.0 is now 2.15.0`."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [f"{name} {mine[name]} is now {theirs[name]}" for name in mine if mine[name] != theirs[name]]


class Setup(Document):
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

    def differences(self, other: Setup) -> list[str]:
        """Return what differs from another, as `batch_size 8 is now 16`."""
        mine, theirs = self._flat(), other._flat()
        names = sorted(set(mine) | set(theirs))
        return [
            f"{name} {mine.get(name, 'unset')} is now {theirs.get(name, 'unset')}"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]

    def _flat(self) -> dict[str, Any]:
        size = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return {"model": self.model, **size, **self.knobs, **self.recipe}


class Record(Document):
    """The figures of one optimizer in one entry.

    Attributes:
        source: measured or predicted.
        device: where it trained, or was predicted to.
        fingerprint: where the figures were made.
        setup: what was trained.
        values: the figures, by metric; those that the run does not give are left out.
        unlimited: metrics of fits without an upper end.
        phase: the phase that sets the peak.
        holders: who holds the memory at the peak.
    """

    source: Source
    device: str
    fingerprint: Fingerprint
    setup: Setup
    values: dict[str, NonNegativeInt] = Field(default_factory=dict)
    unlimited: list[str] = Field(default_factory=list)
    phase: str | None = None
    holders: Holders = Field(default_factory=dict)


class Figures(Record):
    """A record as it was just made, or why it was not.

    Attributes:
        entry: the budget's name.
        optimizer: its spec.
        status: of the run; `oom` has figures too where a prediction without a limit gave them.
        reason: why it failed.
        mistake: the reason lies in the arguments or the model's own code: exit code 2 and not 3.
        capacity_bytes: what there was to take.
        notes: what the reader must know.
    """

    entry: str
    optimizer: str
    status: Literal["ok", "oom", "failed"] = "ok"
    reason: str | None = None
    mistake: bool = False
    capacity_bytes: int | None = None
    notes: list[str] = Field(default_factory=list)

    def record(self) -> Record:
        """Return what a baseline keeps of it."""
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


def _setup(comparison: Comparison) -> Setup:
    workload, recipe = comparison.workload, comparison.recipe
    if workload is None or recipe is None:
        return Setup(model=comparison.subject)
    return Setup(
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
    """Return the cross table with the blocks folded; a document without one gives its categories."""
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
    """Return one set of figures for several measurements of the same thing, and say where they differ.

    Resident memory errs upwards, so the least counts; of every other figure the worst. A repeat that failed decides.
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
