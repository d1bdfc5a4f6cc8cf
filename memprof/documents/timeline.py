"""The memory during one training step, event by event: a part of the comparison document.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from memprof.documents.confidence import Document

_BLOCK = re.compile(r"(?<![^.])\d+(?=\.)")


def fold_blocks(modules: Iterable[str]) -> dict[str, str]:
    """Replace the numbers of repeated blocks in module names by `*`, as in `blocks.*.attention`.

    A number at the end of a name stays if the module has no submodules, because it tells the layers of an
    `nn.Sequential` apart.

    Args:
        modules: The names of modules.

    Returns:
        The new name of each module.
    """
    names = set(modules)
    blocks = {name[: number.end()] for name in names for number in _BLOCK.finditer(name)}
    dotted = {name: f"{name}." if name in blocks else name for name in names}
    return {name: _BLOCK.sub("*", text).removesuffix(".") for name, text in dotted.items()}


class PhaseStart(Document):
    """The start of a phase, which lasts until the next phase starts.

    Attributes:
        phase: The name of the phase.
        event: How many events of the step happened before the phase started.
    """

    phase: str
    event: int


class Owner(Document):
    """The memory that one operator allocated for one module in one category, through the step.

    Attributes:
        category: The category, as in the breakdown.
        module: The module, with `*` for the number of a repeated block; "" outside the model. Null for the sum of all
            owners that are too small to be listed.
        operator: The operator; "" if none was seen, and null if `module` is null.
        points: The indices of the timeline's points at which the level changes. The level is 0 before the first.
        levels_bytes: The level from each of these points on.
    """

    category: str
    module: str | None
    operator: str | None
    points: list[int]
    levels_bytes: list[int]


class Timeline(Document):
    """The last training step, reduced to a few hundred points.

    The points are the begin and the end of the step, the peaks of the allocated and of the reserved memory, the begin
    and the peak of each phase, and the highest and the lowest point of each interval between these.

    Attributes:
        step: The number of the step.
        n_events: The number of allocations and frees in the step.
        events: For each point, how many of these events had happened before it; 0 at the begin of the step.
        allocated_bytes: The allocated memory at each point, which is the sum of the owners' levels.
        reserved_bytes: The memory that the caching allocator held at each point; null if it was not recorded.
        phases: The starts of the phases, in order.
        owners: The owners of the memory, the largest first.
    """

    step: int
    n_events: int
    events: list[int]
    allocated_bytes: list[int]
    reserved_bytes: list[int] | None = None
    phases: list[PhaseStart]
    owners: list[Owner]

    def levels(self, owner: Owner) -> list[int]:
        """Return the level of an owner at every point, in bytes."""
        changes = dict(zip(owner.points, owner.levels_bytes, strict=True))
        levels: list[int] = []
        level = 0
        for point in range(len(self.events)):
            level = changes.get(point, level)
            levels.append(level)
        return levels

    def by_category(self) -> dict[str, list[int]]:
        """Return the level of each category at every point, in bytes; they sum to `allocated_bytes` at each point."""
        totals: dict[str, list[int]] = {}
        for owner in self.owners:
            so_far = totals.get(owner.category, [0] * len(self.events))
            totals[owner.category] = [a + b for a, b in zip(so_far, self.levels(owner), strict=True)]
        return totals
