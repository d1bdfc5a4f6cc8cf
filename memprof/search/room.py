"""Where a trial is to fit: what is trained, at which values of a knob, and in what memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memprof.documents.jobs import Trial
from memprof.documents.vary import BATCH, Vary
from memprof.training.micro_batches import recipe_at
from memprof.documents.jobs import Purpose

# The first step creates the optimizer's state, the second has it from its beginning.
FIT_STEPS = {"warmup": 0, "steps": 2}
# A proof trains one more.
CONFIRM_STEPS = {"warmup": 0, "steps": 3}


@dataclass(frozen=True)
class Room:
    """Where a trial is to fit.

    Attributes:
        trial: the optimizer, the device and the recipe.
        vary: the knob and its values.
        capacity_bytes: what the allocator may take.
    """

    trial: Trial
    vary: Vary
    capacity_bytes: int

    def at(self, value: int, purpose: Purpose) -> Trial:
        """Return the trial at a value: a proof has the capacity for its limit."""
        steps = FIT_STEPS if purpose == "fit" else CONFIRM_STEPS
        changes: dict[str, Any] = {
            "purpose": purpose,
            "recipe": recipe_at(self.trial.recipe, self.vary, value).model_copy(update=steps),
            "limit_bytes": self.capacity_bytes if purpose == "confirm" else None,
        }
        if self.vary.knob == BATCH:
            return self.trial.model_copy(update={**changes, "batch_size": value})
        knobs = {**self.trial.workload.knobs, self.vary.knob: value}
        workload = self.trial.workload.model_copy(update={"knobs": knobs})
        return self.trial.model_copy(update={**changes, "workload": workload})
