"""How many micro-batches make an optimizer step at a value of the knob, and how many of them a prediction traces."""

from __future__ import annotations

from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary

# The first makes the gradients, the last may exchange them, and all between find the memory as the second does.
_TRACED = 3


def recipe_at(recipe: Recipe, vary: Vary, value: int) -> Recipe:
    """Return how it is trained at a value: with as many micro-batches as make up a step's samples, if those are set."""
    if vary.samples is None:
        return recipe
    return recipe.model_copy(update={"accumulate": max(1, vary.samples // value)})


def traced(recipe: Recipe) -> Recipe:
    """Return a recipe that needs as much memory, with no more micro-batches than it takes to see them all."""
    return recipe.model_copy(update={"accumulate": min(recipe.accumulate, _TRACED)})


def step_samples(recipe: Recipe, vary: Vary, value: int) -> tuple[int, int]:
    """Return the micro-batches of an optimizer step with batches of that size, and its samples over all ranks."""
    at = recipe_at(recipe, vary, value)
    return at.accumulate, at.global_batch(value)
