"""The number of micro-batches in an optimizer step when a knob varies, and how many of them a prediction traces."""

from __future__ import annotations

from memprof.documents.recipe import Recipe
from memprof.documents.vary import Vary

# The first micro-batch makes the gradients and the last may exchange them. Those between all find the same memory.
_TRACED = 3


def recipe_at(recipe: Recipe, vary: Vary, value: int) -> Recipe:
    """Return the recipe at one value of the knob.

    If the number of samples in a step is fixed, the recipe accumulates as many micro-batches as they fill.

    Args:
        recipe: The recipe of the user.
        vary: The knob, and the samples of a step if they are fixed.
        value: The value of the knob.
    """
    if vary.samples is None:
        return recipe
    return recipe.model_copy(update={"accumulate": max(1, vary.samples // value)})


def traced(recipe: Recipe) -> Recipe:
    """Return a recipe that takes the same memory with at most three micro-batches in an optimizer step.

    Args:
        recipe: The recipe to shorten.
    """
    return recipe.model_copy(update={"accumulate": min(recipe.accumulate, _TRACED)})


def step_samples(recipe: Recipe, vary: Vary, value: int) -> tuple[int, int]:
    """Return how many micro-batches and how many samples an optimizer step has at one batch size.

    Args:
        recipe: The recipe of the user.
        vary: The batch size as the knob, and the samples of a step if they are fixed.
        value: The samples of a micro-batch.

    Returns:
        The number of micro-batches, and the number of samples over all ranks.
    """
    at = recipe_at(recipe, vary, value)
    return at.accumulate, at.global_batch(value)
