"""The Python API for training scripts: `memprof.run` runs a script as it is, or predicts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from memprof.documents.comparison import Comparison
from memprof.documents.jobs import ScriptTrial
from memprof.documents.script import AS_IS, check_placeholders, parse_substitution
from memprof.documents.vary import parse_vary
from memprof.errors import UsageError
from memprof.script_comparison import ScriptStudy, check_substitutions, spec_of_script
from memprof.units import parse_size
from memprof.workers.launcher import Launcher
from memprof.workers.pool import Workers
from memprof.workers.progress import OnComparison, OnProgress

TIMEOUT_S = 600.0
MOST_RANKS = 16384


def run(
    script: str | Path | None = None,
    arguments: Sequence[str] = (),
    *,
    module: str | None = None,
    optimizers: Sequence[str] = (AS_IS,),
    device: str = "auto",
    steps: int | None = None,
    vary: str | None = None,
    budget: str | int | None = None,
    validate: bool = False,
    reference: str | None = None,
    timeout: float = TIMEOUT_S,
    world_size: int | None = None,
    rank: int | None = None,
    assume: Mapping[str, bool | int | float] | None = None,
    script_output: str | Path | None = None,
    keep_outputs: bool = False,
    command: str | None = None,
    trace_folder: str | Path | None = None,
    on_progress: OnProgress | None = None,
    on_comparison: OnComparison | None = None,
    launcher: Launcher | None = None,
) -> Comparison:
    """Run a training script as it is, with its own optimizer or another, and return how much memory it takes.

    Args:
        script: The file to run as `__main__`.
        arguments: The arguments of the script.
        module: The module to run in place of a file, as `python -m` would.
        optimizers: `as-is` keeps the script's own optimizers. A spec such as `sm3,momentum=0.9` replaces every
            optimizer that the script constructs, `sm3@1` replaces the second, and `sm3@adam_g` replaces the one that
            is assigned to that variable.
        device: `auto`, `cpu`, `cuda` or `cuda:N` runs the script on that device. A simulated GPU (`rtx-4090`, `24GiB`)
            predicts it.
        steps: The number of training steps after which the script is stopped; None to stop it when two steps in a row
            allocate the same.
        vary: `NAME=LO:HI` finds, for each optimizer, the largest whole number for `{NAME}` in the script's arguments
            with which the script fits: `vary="batch=1:64"` with `--batch_size={batch}`. On a device of this machine,
            the answer and the value after it are also run, in processes whose memory is capped. The figures are those
            of the largest value that fits with every optimizer.
        budget: The memory that the script may take: a size such as `"24GiB"`, or bytes. None for the device's memory.
        validate: Whether each measurement is also predicted, with the errors of the prediction in `Run.validation`.
        reference: The optimizer that the others are compared with.
        timeout: The seconds that one run of the script may take.
        world_size: The number of ranks on which the script runs, as if torchrun had started it; None to start it as it
            is.
        rank: The rank to predict (default: the first), or to show of the measured ranks (default: the one with the
            highest peak).
        assume: For values that a prediction cannot know, the value to assume, by `FILE:LINE`.
        script_output: The file that takes what the script prints; None for stderr.
        keep_outputs: Whether files that the script saves stay where it saves them, instead of in a temporary folder.
        command: The command line to record in the result.
        trace_folder: An existing folder that takes the whole trace of each run; None to write no traces.
        on_progress: Called with every step.
        on_comparison: Called with the comparison so far after every run.
        launcher: The fork server to use; None to start a new one.

    Returns:
        The comparison of the optimizers.

    Raises:
        UsageError: An argument or the script is at fault, or the script takes no training step.
        MemprofError: Something failed that is not the fault of a single optimizer.
    """
    substitutions = [parse_substitution(text) for text in optimizers]
    reference = check_substitutions(substitutions, reference)
    if steps is not None and steps < 2:
        raise UsageError(f"--steps {steps}: the first step makes the optimizer's state, so give 2 or more")
    if timeout <= 0:
        raise UsageError(f"--timeout {timeout:g}: give a number of seconds above 0")
    _check_ranks(world_size, rank)
    program = spec_of_script(None if script is None else str(script), module, tuple(arguments))
    varied = None if vary is None else parse_vary(vary)
    if varied is not None:
        check_placeholders(program, varied)
    trial = ScriptTrial(
        script=program,
        substitution=substitutions[0],
        device=device,
        steps=steps,
        timeout_s=timeout,
        answers=dict(assume or {}),
        output=None if script_output is None else str(Path(script_output).resolve()),
        keep_outputs=keep_outputs,
        trace_folder=None if trace_folder is None else str(Path(trace_folder).resolve()),
        world_size=world_size,
        rank=rank,
    )
    capacity = parse_size(budget) if isinstance(budget, str) else budget
    with Workers(1, launcher) as workers:
        study = ScriptStudy(workers.launchers[0], trial, substitutions, on_progress, on_comparison, varied)
        study.inquire(capacity, reference, command, validate)
        study.run(validate)
        return study.comparison


def _check_ranks(world_size: int | None, rank: int | None) -> None:
    if world_size is None and rank is not None:
        raise UsageError(f"--rank {rank} is one of several: say of how many with --world-size")
    if world_size is None:
        return
    if not 1 <= world_size <= MOST_RANKS:
        raise UsageError(f"--world-size {world_size}: give the number of ranks, from 1 to {MOST_RANKS}")
    if rank is not None and not 0 <= rank < world_size:
        raise UsageError(f"--rank {rank}: the {world_size} ranks are counted from 0 to {world_size - 1}")


def parse_assumptions(items: Sequence[str]) -> dict[str, bool | int | float]:
    """Return the values to assume, by `FILE:LINE`.

    Args:
        items: The assumptions, each as `FILE:LINE=VALUE`.

    Raises:
        UsageError: An item has another form, or its value is not a number, true or false.
    """
    found: dict[str, bool | int | float] = {}
    for item in items:
        place, equals, text = (part.strip() for part in item.rpartition("="))
        file, _, line = place.rpartition(":")
        value = _parse_value(text)
        if not equals or not file or not line.isdigit() or value is None:
            raise UsageError(f"--assume takes FILE:LINE=VALUE, for example train.py:23=true, not {item!r}")
        found[place] = value
    return found


def _parse_value(text: str) -> bool | int | float | None:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
