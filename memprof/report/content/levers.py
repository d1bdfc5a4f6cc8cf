"""Sentences about what sets the peaks and what would lower them, one for each category of the breakdown.

Nothing is predicted here. A sentence names a category that holds much of the peak and the changes that act on just this
category. A change saves at most what the category holds.
"""

from __future__ import annotations

from memprof.documents.comparison import Breakdown, Comparison, Run
from memprof.documents.recipe import Recipe
from memprof.documents.wording import category_title, phase_words
from memprof.report.content import sections
from memprof.units import format_share, format_size

# A category that holds less than this share of every peak is not worth a change.
_WORTH = 0.05

_Shown = list[tuple[Run, Breakdown]]


def levers(comparison: Comparison) -> list[str]:
    """Return sentences that say which phase sets the peaks, and for each large category its share and what lowers it.

    Args:
        comparison: The comparison, whose runs may be without a breakdown.
    """
    shown = [(run, found) for run, found in sections.breakdowns(comparison) if found.total_bytes]
    shares = {name: [_share(found, name) for _, found in shown] for name in sections.present_categories(comparison)}
    largest = sorted((name for name in shares if max(shares[name]) >= _WORTH), key=lambda name: -max(shares[name]))
    sentences = [_sentence(name, shares[name], shown, comparison) for name in largest]
    if shares and "optimizer_state" not in largest:
        most = max(shares.get("optimizer_state", [0.0]))
        sentences.append(f"optimizer state, {format_share(most)} of a peak at most: a smaller one hardly lowers it.")
    return [f"{sentence[0].upper()}{sentence[1:]}" for sentence in (*_phases(shown), *sentences)]


def _share(found: Breakdown, category: str) -> float:
    return found.by_category.get(category, 0) / found.total_bytes


def _phases(shown: _Shown) -> list[str]:
    """Return sentences that say which phase sets the peak of which optimizer."""
    whose: dict[str, list[str]] = {}
    for run, found in shown:
        whose.setdefault(found.phase, []).append(run.optimizer.spec)
    if len(whose) == 1:
        return [f"{phase_words(phase)} sets {'every' if len(shown) > 1 else 'the'} peak." for phase in whose]
    return [f"{phase_words(phase)} sets the peak of {', '.join(names)}." for phase, names in whose.items()]


def _sentence(category: str, shares: list[float], shown: _Shown, comparison: Comparison) -> str:
    low, high = _percent(min(shares)), _percent(max(shares))
    extent = f"{high} of the peak" if low == high else f"{low} to {high} of the peak"
    if category == "optimizer_state":
        change = _smaller_state(shown)
    elif category == "temporaries":
        change = _fewer_temporaries([found.phase for _, found in shown])
    else:
        change = _change(category, comparison.recipe) if comparison.recipe is not None else ""
    return f"{category_title(category)}, {extent}{f': {change}' if change else ''}."


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _change(category: str, recipe: Recipe) -> str:
    """Return the changes that act on a category, without those that the recipe uses already."""
    copies = recipe.strategy == "ddp"
    stepped = recipe.step_in_backward or recipe.accumulate > 1 or copies  # DDP reduces gradients first
    shards = ["--strategy fsdp, which shards them"] if copies else []
    options: dict[str, list[str]] = {
        "activations": [
            "a smaller batch with --accumulate",
            *([] if recipe.checkpoint_activations else ["--checkpoint-activations"]),
            *(["--precision amp-bf16"] if recipe.precision == "fp32" else []),
        ],
        "gradients": [*([] if stepped else ["--step-in-backward"]), *shards],
        "parameters": [*([] if recipe.precision == "bf16" else ["--precision bf16, or a smaller model"]), *shards],
        "communication": ["DDP's option gradient_as_bucket_view=True, which keeps gradients there"] if copies else [],
    }
    return _either(options.get(category, []))


def _fewer_temporaries(phases: list[str]) -> str:
    options = [] if set(phases) == {"optimizer"} else ["a smaller batch"]
    if "optimizer" in phases:
        where = "" if set(phases) == {"optimizer"} else " where the optimizer step sets the peak"
        options.append(f"an implementation that steps in place (fused, or for-loop instead of foreach){where}")
    return _either(options)


def _either(options: list[str]) -> str:
    return " or ".join(options) if len(options) < 3 else f"{', '.join(options[:-1])} or {options[-1]}"


def _smaller_state(shown: _Shown) -> str:
    """Name the optimizer with the smallest state above 0, if that state is at most half of the largest."""
    kept = [(run.state.bytes, run.optimizer.spec) for run, _ in shown if run.state and run.state.bytes]
    if not kept or 2 * min(kept)[0] > max(kept)[0]:
        return ""
    least, most = min(kept, key=lambda pair: pair[0]), max(kept, key=lambda pair: pair[0])
    return f"{least[1]} keeps {format_size(least[0])} where {most[1]} keeps {format_size(most[0])}"
