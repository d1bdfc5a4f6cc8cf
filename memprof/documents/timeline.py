"""The memory of one training step from event to event: a part of the comparison document.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from memprof.documents.confidence import Document

_BLOCK = re.compile(r"(?<![^.])\d+(?=\.)")


def fold_blocks(modules: Iterable[str]) -> dict[str, str]:
    """Return each module's name with `*` for the numbers of blocks: `blocks.*.attention`.

    A last number stays where the module has no parts: it tells a Sequential's layers apart.
    """
    names = set(modules)
    blocks = {name[: number.end()] for name in names for number in _BLOCK.finditer(name)}
    dotted = {name: f"{name}." if name in blocks else name for name in names}
    return {name: _BLOCK.sub("*", text).removesuffix(".") for name, text in dotted.items()}


class PhaseStart(Document):
    """A phase begins after so many events of the step, and lasts until the next begins."""

    phase: str
    event: int


class Owner(Document):
    """What the blocks of one category that one operator allocated for one module hold, over the timeline's points.

    Attributes:
        category: as in the breakdown.
        module: with `*` for the number of a block, "" outside the model; null where owners too small to be listed are
            summed up.
        operator: "" where none was seen; null with `module`.
        points: indices of the timeline's points at which the level changes; it is 0 before the first.
        levels_bytes: the level from each of these points on.
    """

    category: str
    module: str | None
    operator: str | None
    points: list[int]
    levels_bytes: list[int]


class Timeline(Document):
    """The last training step, thinned out to a few hundred points.

    Kept are the step's begin and end, the peak of allocated and of reserved memory, the begin and the peak of each
    phase, and the highest and the lowest point of each stretch between.

    Attributes:
        step: which step it is.
        n_events: allocations and frees in it.
        events: of each point, how many of these had happened; 0 is the step's begin.
        allocated_bytes: the allocator's level at each point; the owners' levels sum to it.
        reserved_bytes: what the caching allocator held at each point; null where that was not followed.
        phases: in order.
        owners: the largest first.
    """

    step: int
    n_events: int
    events: list[int]
    allocated_bytes: list[int]
    reserved_bytes: list[int] | None = None
    phases: list[PhaseStart]
    owners: list[Owner]

    def levels(self, owner: Owner) -> list[int]:
        """Return an owner's level at every point."""
        changes = dict(zip(owner.points, owner.levels_bytes, strict=True))
        levels: list[int] = []
        level = 0
        for point in range(len(self.events)):
            level = changes.get(point, level)
            levels.append(level)
        return levels

    def by_category(self) -> dict[str, list[int]]:
        """Return each category's level at every point; at each, they sum to `allocated_bytes`."""
        totals: dict[str, list[int]] = {}
        for owner in self.owners:
            so_far = totals.get(owner.category, [0] * len(self.events))
            totals[owner.category] = [a + b for a, b in zip(so_far, self.levels(owner), strict=True)]
        return totals
