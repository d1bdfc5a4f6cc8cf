"""The parts of a report about the ranks of a training: how they share it, and what the device of each rank holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memprof.documents.comparison import Comparison, Rank, Run
from memprof.report.text_table import Table
from memprof.units import ABSENT, format_size


def batch_words(comparison: Comparison) -> str:
    """Return the batch size, and of several ranks or micro-batches that of the whole step; empty for a script."""
    if comparison.workload is None or comparison.recipe is None:
        return ""
    each, recipe = comparison.workload.batch_size, comparison.recipe
    if recipe.world_size == 1:
        return f"batch size {each}"
    return f"batch size {each} per rank, {recipe.global_batch(each)} per step"


def strategy_words(comparison: Comparison) -> str:
    """Return how many ranks share the training, and how: `fsdp over 4 ranks`; empty for a single one."""
    if comparison.world_size == 1:
        return ""
    return f"{f'{comparison.strategy} over ' if comparison.strategy else ''}{comparison.world_size} ranks"


def devices(comparison: Comparison) -> list[str]:
    """Return the names of the devices of all runs and ranks, each once."""
    named = ([rank.device for rank in run.ranks] or [run.device] for run in comparison.runs)
    return list(dict.fromkeys(device for names in named for device in names))


def rank_table(comparison: Comparison) -> Table:
    """Return a table with a row for each group of an optimizer's ranks that hold the same memory.

    Ranks that differ only in the memory of their processes are in one group, which shows the largest of these. The
    table has no rows if no training is shared by several ranks.
    """
    rows = tuple(row for run in comparison.runs for row in _rows(run))
    titles = ("optimizer", "rank", "parameters", "state", "all ranks' state", "allocated", "reserved", "process")
    shown = [index for index in range(len(titles)) if index < 2 or any(row[index] != ABSENT for row in rows)]
    table = Table(titles=titles, rows=rows, ranks=tuple(range(8)), right=(False, False, *(True,) * 6))
    return table.select(shown)


def rank_remark(comparison: Comparison) -> str:
    """Return the sentence that says which rank the other figures belong to; empty for single ranks."""
    if not any(run.ranks for run in comparison.runs):
        return ""
    asked = comparison.script.rank if comparison.script is not None else None
    whose = "that with the highest peak (*)" if asked is None else f"rank {asked} (*), which was asked for"
    return f"Every figure is of one rank, {whose}, but for losses (mean) and step times (slowest)."


def _rows(run: Run) -> Iterator[tuple[str, ...]]:
    groups: dict[tuple[int | None, ...], list[Rank]] = {}
    for rank in run.ranks:
        peak = rank.peak
        key = (rank.parameters_bytes, rank.state_bytes, peak.allocated_bytes, peak.reserved_bytes)
        groups.setdefault(key, []).append(rank)
    for index, ((parameters, state, allocated, reserved), ranks) in enumerate(groups.items()):
        process = max((rank.peak.process_bytes or 0 for rank in ranks), default=0)
        yield (
            run.optimizer.spec,
            spans(rank.rank for rank in ranks) + ("*" if run.rank in {rank.rank for rank in ranks} else ""),
            *map(format_size, (parameters, state, run.job_state_bytes if index == 0 else None)),
            *map(format_size, (allocated, reserved, process or None)),
        )


def spans(numbers: Iterable[int]) -> str:
    """Return numbers as ranges: `0-2, 5` for 0, 1, 2 and 5."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in found)
