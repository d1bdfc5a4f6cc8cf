"""Summarizes a comparison in a few sentences: what another optimizer changes for the user, and what it does not."""

from __future__ import annotations

from statistics import median

from memprof.documents.comparison import Comparison, FitAnswer, Peak, Run, State
from memprof.documents.wording import category_title, phase_words
from memprof.report.content.columns import is_open, largest
from memprof.report.content.sections import sources
from memprof.units import format_seconds, format_share, format_size

CLOSE = 0.02
_TIE = 0.01
_ENOUGH_STEPS = 5
_BESIDE_TRAINING = ("evaluation", "save")
_TRAINING = ("forward", "backward", "clip", "optimizer", "zero_grad")


class _Finished:
    """The figures of a finished run that the sentences use."""

    def __init__(self, run: Run, state: State, peak: Peak) -> None:
        self.run, self.state, self.peak = run, state.bytes, peak.allocated_bytes
        self.name, self.phase, self.per_parameter = run.optimizer.spec, peak.phase, state.bytes_per_parameter


def summarize(comparison: Comparison) -> list[str]:
    """Return the sentences of the headline, the most important first.

    The optimizer with the lowest peak (the first one of those within 1 %) is compared with the reference, or with the
    optimizer that has the largest state if there is no reference. An optimizer without any state, such as plain SGD,
    only shows the lower limit and is no replacement for the reference; it is chosen only if there is no other.

    Args:
        comparison: The comparison, which may be unfinished.
    """
    finished = [
        _Finished(run, run.state, run.peak)
        for run in comparison.runs
        if run.status == "ok" and run.state is not None and run.peak is not None
    ]
    if not finished:
        return [_nothing_finished(comparison)]
    if len(finished) == 1:
        sentences = [_about_one(finished[0], comparison), *_fit_of_one(finished[0], comparison)]
    else:
        reference = _reference(finished, comparison)
        best = _best([found for found in finished if found is not reference])
        sentences = _against(best, reference, finished, comparison)
    if comparison.script is not None:
        sentences += _beside_training(finished)
    return [*sentences, *_unfinished(comparison)]


def _nothing_finished(comparison: Comparison) -> str:
    if not comparison.runs:
        return "No optimizer has finished."
    states = {run.status for run in comparison.runs}
    words = {"oom": "ran out of memory", "failed": "failed"}
    how = " or ".join(words[state] for state in ("oom", "failed") if state in states)
    return f"No optimizer finished: every run {how or 'lacks its figures'}."


def _about_one(only: _Finished, comparison: Comparison) -> str:
    return (
        f"{sources(comparison).capitalize()}: {only.name} keeps {format_size(only.state)} of state "
        f"({only.per_parameter:.2f} bytes per parameter); its peak is {format_size(only.peak)}, "
        f"set by {phase_words(only.phase)}."
    )


def _reference(finished: list[_Finished], comparison: Comparison) -> _Finished:
    named = (found for found in finished if found.name == comparison.reference)
    return next(named, None) or max(finished, key=lambda found: found.state)


def _best(candidates: list[_Finished]) -> _Finished:
    adaptive = [found for found in candidates if found.state] or candidates
    lowest = min(found.peak for found in adaptive)
    return next(found for found in adaptive if found.peak <= lowest * (1 + _TIE))


def _all_peaks(finished: list[_Finished], reference: _Finished) -> list[str]:
    """Return how all peaks compare with the reference's, the lowest first; nothing if there are only two runs."""
    others = sorted((found for found in finished if found is not reference), key=lambda found: found.peak)
    if len(others) < 2:
        return []
    changes = (f"{found.name} {_signed(found.peak / reference.peak - 1)}" for found in others)
    return [f"Peaks against {reference.name}: {'; '.join(changes)}."]


def _signed(change: float) -> str:
    return f"{'-' if change < 0 else '+'}{format_share(abs(change))}" if abs(change) >= 0.005 else "the same"


def _against(best: _Finished, reference: _Finished, finished: list[_Finished], comparison: Comparison) -> list[str]:
    keeps = (
        f"{sources(comparison).capitalize()}: {best.name} keeps {format_size(best.state)} of state "
        f"where {reference.name} keeps {format_size(reference.state)}"
    )
    peaks = [found.peak for found in finished]
    if max(peaks) < min(peaks) * (1 + CLOSE):
        sentences = [f"{keeps}.", _all_alike(best, reference)]
    else:
        sentences = [f"{keeps}; {_peak_clause(best, reference)}, set by {phase_words(best.phase)}."]
        sentences += _all_peaks(finished, reference)
    return [*sentences, *_fits(best, reference, comparison), *_speed(best, reference)]


def _peak_clause(best: _Finished, reference: _Finished) -> str:
    change = best.peak / reference.peak - 1
    both = f"({format_size(best.peak)} instead of {format_size(reference.peak)})"
    if abs(change) < 0.005:
        return f"its peak is the same within 0.5 % {both}"
    return f"its peak is {format_share(abs(change))} {'lower' if change < 0 else 'higher'} {both}"


def _all_alike(best: _Finished, reference: _Finished) -> str:
    alike = f"The optimizers' peaks differ by less than {CLOSE:.0%}".replace("%", " %")
    breakdown = reference.run.breakdown
    if breakdown is None or not breakdown.total_bytes or best.state > reference.state / 2:
        return f"{alike}; {phase_words(reference.phase)} sets them."
    category, size = max(breakdown.by_category.items(), key=lambda item: item[1])
    what = f"{category_title(category)} ({format_share(size / breakdown.total_bytes)} of the peak)"
    where = phase_words(breakdown.phase)
    return f"{alike}: {what} in {where} set them, so a smaller state hardly lowers the peak here."


def _fits(best: _Finished, reference: _Finished, comparison: Comparison) -> list[str]:
    ours, theirs = best.run.fit, reference.run.fit
    if ours is None or theirs is None:
        return []
    pairs = [(ours.batch_size, theirs.batch_size), (ours.model, theirs.model)]
    clauses = [_fit_clause(mine, other) for mine, other in pairs if mine and other]
    return _fit_sentence([clause for clause in clauses if clause], comparison)


def _fit_clause(mine: FitAnswer, other: FitAnswer) -> str:
    if mine.value is None or other.value is None:
        return ""
    values = "with both" if mine.value == other.value else f"instead of {_least(other)}"
    return f"{largest(mine.knob)} {_least(mine)} {values}{_label(mine, other)}"


def _least(answer: FitAnswer) -> str:
    return f"{'at least ' if is_open(answer) else ''}{answer.value}"


def _fit_of_one(only: _Finished, comparison: Comparison) -> list[str]:
    fit = only.run.fit
    found = [
        f"{largest(answer.knob)} {_least(answer)}{_label(answer)}"
        for answer in ((fit.batch_size, fit.model) if fit is not None else ())
        if answer is not None and answer.value is not None
    ]
    return _fit_sentence(found, comparison)


def _fit_sentence(clauses: list[str], comparison: Comparison) -> list[str]:
    within = format_size(comparison.capacity.bytes)
    return [f"Within {within}: {'; '.join(clauses)}."] if clauses else []


def _label(*answers: FitAnswer) -> str:
    return " (extrapolated)" if any(answer.method == "extrapolated" and answer.value for answer in answers) else ""


def _beside_training(finished: list[_Finished]) -> list[str]:
    """Return whether evaluation or saving sets a script's peak; nothing if the script has done neither."""
    highest = [found for found in finished if found.phase in _BESIDE_TRAINING]
    if highest:
        needs = (f"{phase_words(one.phase)} sets the peak{_of(one, finished)}, {_training(one)}" for one in highest)
        return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in needs]
    peaks = {
        phase: max(one.run.phases[phase].allocated_bytes for one in finished if phase in one.run.phases)
        for phase in _BESIDE_TRAINING
        if any(phase in one.run.phases for one in finished)
    }
    if not peaks:
        return []
    sizes = [f"{phase_words(phase)} (up to {format_size(size)})" for phase, size in peaks.items()]
    what = " and ".join(sizes)
    return [f"{what[0].upper()}{what[1:]} {'do' if len(sizes) > 1 else 'does'} not set the peak."]


def _of(one: _Finished, finished: list[_Finished]) -> str:
    return f" of {one.name}" if len(finished) > 1 else ""


def _training(one: _Finished) -> str:
    peaks = [peak.allocated_bytes for phase, peak in one.run.phases.items() if phase in _TRAINING]
    return f"{format_size(one.peak)}; the training steps need {format_size(max(peaks, default=0))}"


def _speed(best: _Finished, reference: _Finished) -> list[str]:
    """Return how much longer a step takes, if there are enough steps to tell the difference from noise."""
    if best.run.steps is None or reference.run.steps is None:
        return []
    ours, theirs = best.run.steps.seconds, reference.run.steps.seconds
    if min(len(ours), len(theirs)) < _ENOUGH_STEPS or min(ours) <= max(theirs):
        return []
    ratio = median(ours) / median(theirs)
    both = f"{format_seconds(median(ours))} instead of {format_seconds(median(theirs))}"
    return [f"A step takes {ratio:.1f} times as long: {both}."]


def _unfinished(comparison: Comparison) -> list[str]:
    words = {"oom": "ran out of memory", "failed": "failed"}
    clauses = []
    for status, word in words.items():
        names = [run.optimizer.spec for run in comparison.runs if run.status == status]
        clauses += [f"{' and '.join(names)} {word}"] if names else []
    return [f"{'; '.join(clauses)}."] if clauses else []
