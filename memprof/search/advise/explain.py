"""Why a change saves nothing here: what sets the peak is something else."""

from __future__ import annotations

from memprof.documents.advice import Figures
from memprof.documents.wording import phase_words
from memprof.documents.wording import category_title
from memprof.units import format_share
from memprof.units import format_size

# A saving below this share of the peak is none.
NEGLIGIBLE = 0.01


def saves_nothing(now: Figures, saves_bytes: int) -> bool:
    """Whether a saving is not worth the change."""
    return saves_bytes < NEGLIGIBLE * now.peak_bytes


def why_nothing(now: Figures, then: Figures, parts: set[str]) -> str:
    """Return why a peak stays where it is.

    Args:
        now: the training as it is.
        then: the training with the change.
        parts: of the training that the change is about.
    """
    total = sum(now.held.values()) or 1
    less = total - sum(then.held.values())
    if less >= NEGLIGIBLE * now.peak_bytes:
        return f"{format_size(less)} less are allocated, but as much has to be reserved: it is fragmentation that stays"
    category, size = max(now.held.items(), key=lambda item: item[1], default=("nothing", 0))
    what = f"{category_title(category)} ({format_share(size / total)}) in {phase_words(now.held_phase)} set the peak"
    if "optimizer" in parts:
        state = now.held.get("optimizer_state", 0)
        return f"{what}; the optimizer's state is {format_share(state / total)} of it"
    if then.peak_bytes > now.peak_bytes:
        return f"it takes more: {what}"
    return what
