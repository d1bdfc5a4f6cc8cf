"""The Python API: `memprof.run`, for a training script as it is."""

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
    """Run a training script as it is, with its own optimizer or another, and say what memory it takes.

    Args:
        script: The file to run as `__main__`.
        arguments: The arguments of the script.
        module: The module that `python -m` would run, in place of a file.
        optimizers: `as-is` for the script's own; a spec such as `sm3,momentum=0.9` in place of every optimizer that it
            constructs, `sm3@1` in place of the second, `sm3@adam_g` in place of the one assigned to that variable.
        device: `auto`, `cpu`, `cuda`, `cuda:N` really runs it; a simulated GPU (`rtx-4090`, `24GiB`) is predicted for.
        steps: The number of training steps after which the script is stopped. By default it is stopped when two steps
            in a row allocate alike.
        vary: `NAME=LO:HI` finds the largest whole number with which the script fits in the place of `{NAME}` in its
            arguments, for each optimizer: `vary="batch=1:64"` with `--batch_size={batch}`. On a device that is here
            the answer and the value after it are run as well, in processes whose memory is capped. The figures are
            those of the largest value that fits with every optimizer.
        budget: The memory that the script must fit into: a size such as `"24GiB"`, or bytes. The default is the memory
            of the device.
        validate: predict what is measured as well, and note how far each figure was off (`Run.validation`).
        reference: The optimizer with which the others are compared.
        timeout: The seconds that one run of the script may take.
        world_size: on how many ranks the script runs, as if torchrun had started it; None for as it is.
        rank: the one to predict (default: the first), or to show of those measured (default: the highest peak).
        assume: By `FILE:LINE`, the values that a prediction does not know.
        script_output: The file to which the script's output is written; stderr if it is not given.
        keep_outputs: leave what the script saves where it saves it, instead of in a temporary folder.
        command: the command line to record in the result.
        trace_folder: an existing folder for each run's whole trace.
        on_progress: Is called after every step.
        on_comparison: Is called after every run with the comparison so far.
        launcher: The fork server to use; a new one is started if it is not given.

    Raises:
        UsageError: an argument or the script is at fault, or the script takes no training step.
        MemprofError: something failed that has to do with no single optimizer.
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
    """Return what a list of `FILE:LINE=VALUE` texts says.

    Raises:
        UsageError: an item is none, or its value is no number and neither true nor false.
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
