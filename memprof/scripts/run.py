"""Runs a script from its start to its last training step, in the same way for a prediction and a measurement."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memprof.documents.jobs import Mistake, ScriptTrial
from memprof.errors import ExitCode, UsageError
from memprof.scripts.loaders import loaders_in_process
from memprof.scripts.optimizers import ScriptOptimizers
from memprof.scripts.output import script_output
from memprof.scripts.program import own_exit_functions, run_program, time_limit
from memprof.scripts.session import ScriptSession
from memprof.scripts.side_effects import kept_outputs
from memprof.scripts.stopping import ScriptStopped, ScriptTimedOut
from memprof.scripts.torchrun import spawned_here


@dataclass(frozen=True)
class Ending:
    """The end of a script that has taken at least one training step.

    Attributes:
        notes: The sentences that the reader of the figures must know.
    """

    notes: list[str] = field(default_factory=list)


def run_script(
    job: ScriptTrial,
    session: ScriptSession,
    emit: Callable[[Any], None],
    applied: Callable[[], AbstractContextManager[None]],
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
    outputs: Path | None = None,
) -> Ending:
    """Run a script until it has taken its steps.

    Args:
        job: The script, the number of its steps and the optimizer.
        session: The session that follows the script and stops it.
        emit: The function that takes the error message if no exception can reach the script.
        applied: Returns the innermost context, which surrounds only the script.
        around: Returns a context that surrounds the preparations as well.
        outputs: The folder for the files that the script saves; None for a new temporary one.

    Returns:
        How the script ended, with the notes for the reader.

    Raises:
        UsageError: The script is at fault, or it never took a training step.
        MemprofError: Memprof found an error in the script.
    """
    optimizers = ScriptOptimizers(job.substitution)
    session.optimizers = optimizers

    def give_up(place: str) -> None:
        emit(Mistake(message=_too_slow(job, session, place), exit_code=ExitCode.USAGE))
        os._exit(1)

    ended_early = True
    with ExitStack() as stack:
        stack.enter_context(script_output(job.output))
        stack.enter_context(own_exit_functions())
        stack.enter_context(around())
        stack.enter_context(kept_outputs(job.keep_outputs, outputs))
        moved = stack.enter_context(loaders_in_process())
        stack.enter_context(optimizers.substituted())
        stack.enter_context(spawned_here(job.world_size))
        stack.enter_context(time_limit(job.timeout_s, give_up))
        try:
            with applied(), session.followed():
                run_program(job.script)
        except ScriptStopped:
            ended_early = False
        except ScriptTimedOut as late:
            if not session.ended:
                raise UsageError(_too_slow(job, session, late.place)) from None
            ended_early = False
        except UsageError:
            if not session.ended:  # an error while the script unwinds does not matter
                raise
            ended_early = False
    ended_early = ended_early and not session.ended
    optimizers.check()
    if not session.cycles.count:
        raise UsageError(_no_step(job, optimizers))
    return Ending([*_notes(job, session, optimizers, ended_early), *moved[:1]])


def _notes(job: ScriptTrial, session: ScriptSession, optimizers: ScriptOptimizers, ended_early: bool) -> list[str]:
    count = session.cycles.count
    times = Counter(optimizers.constructed).items()
    own = ", ".join(f"{text}, {number} times" if number > 1 else text for text, number in times)
    found = [f"The script's own optimizers: {own}."] if own else []
    if ended_early:
        return [*found, f"{job.script.name} ended by itself after {_steps(count)}."]
    if job.steps is None and not session.alike:
        found.append(
            f"Its training steps never became alike: each of {count} allocated other sizes than the one before, so "
            "later ones may need more; --steps runs more of them."
        )
    unseen = [word for phase, word in (("evaluation", "evaluated"), ("save", "saved")) if phase not in session.seen]
    if unseen:
        found.append(
            f"The run ended after {_steps(count)}, before the script {' or '.join(unseen)} anything: if it does so "
            "later, a larger --steps shows what that takes."
        )
    return found


def check_used(
    job: ScriptTrial, session: ScriptSession, trained_on: set[str], device: str, allocated_bytes: int
) -> list[str]:
    """Return a note if the script's parameters are not on the device that the figures describe.

    Args:
        job: The job, which names the script.
        session: The session that has followed the script.
        trained_on: The types of the devices on which the trained parameters are.
        device: The name of the device, a GPU.
        allocated_bytes: The peak of the memory that the script allocated on the device, in bytes.

    Raises:
        UsageError: The script allocated nothing on the device, so there are no figures to report.
    """
    if allocated_bytes and "cuda" in trained_on:
        return []
    trained = ", ".join(dict.fromkeys(session.optimizers.constructed)) or "its optimizer"
    places = " and ".join(sorted(kind.upper() for kind in trained_on))
    if not allocated_bytes:
        raise UsageError(
            f"{job.script.name} took {_steps(session.cycles.count)} and allocated nothing on {device}: what {trained} "
            f'trains is on the {places}; move the model and its batches with .to("cuda"), or measure it as it is with '
            "--device cpu"
        )
    return [
        f"What {trained} trains is on the {places} and not on {device}: these figures are of what else the script "
        'keeps there. If that is not meant, move the model with .to("cuda") before the optimizer is constructed.'
    ]


def _steps(count: int) -> str:
    return f"{count} training step{'s' if count != 1 else ''}"


def _no_step(job: ScriptTrial, optimizers: ScriptOptimizers) -> str:
    if optimizers.constructed:
        what = f"constructed {', '.join(optimizers.constructed)} and took no step with it"
    else:
        what = "constructed no optimizer"
    return f"{job.script.name} ended without a training step: it {what}, so there is nothing to say of its training"


def _too_slow(job: ScriptTrial, session: ScriptSession, place: str) -> str:
    count = session.cycles.count
    where = f" in {place}" if place else ""
    done = f"after {_steps(count)}" if count else "before its first training step"
    return (
        f"{job.script.name} was still running{where} when {job.timeout_s:g} s were over, {done}; "
        "give it more with --timeout, or less to do"
    )
