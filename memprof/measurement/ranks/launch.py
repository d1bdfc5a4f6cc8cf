"""Starts the ranks of a trial as processes of this machine, waits for them, and leaves none behind.

PyTorch's own `torch.multiprocessing.start_processes` forks them, as torchrun's launcher does to start a function
(torch/distributed/elastic/multiprocessing/api.py, `MultiprocessContext`). The rest of that launcher is left out on
purpose: its rendezvous runs in threads, and a process with threads must not be forked, and a measurement needs neither
restarts nor several machines. The ranks find each other by a TCP store on a socket that listens before they start, so
that no other process can take the port in between.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from torch.multiprocessing.spawn import start_processes

from memprof.documents.jobs import Mistake, Outcome, ScriptTrial, Trial
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.errors import ExitCode, MemprofError
from memprof.measurement.ranks.gather import gather
from memprof.measurement.ranks.rank import Lost, enter, ranks_of
from memprof.training import strategies  # noqa: F401  # imported before the ranks are forked, who all need it
from memprof.workers.death import WorkerDiedError, kernel_kills, outcome_of

_Message = Annotated[Outcome | Mistake | Lost, Field(discriminator="kind")]
_MESSAGE: TypeAdapter[_Message] = TypeAdapter(_Message)

# Seconds to wait for other ranks after one has failed, because ranks that do the same fail at the same time.
_GRACE = 0.3
# Seconds to wait for the rank that failed first: a rank that lost the connection to it reports within milliseconds.
_PATIENCE = 10.0


def run_ranks(trial: Trial | ScriptTrial, emit: Callable[[Any], None]) -> Outcome:
    """Train a trial on all its ranks and return one outcome for all. The first rank that fails ends the others.

    Args:
        trial: The trial of a workload with a strategy, or of a script, with a world size. Each rank is measured by
            itself.
        emit: Takes a `Step` whenever a step of the first rank begins.

    Raises:
        MemprofError: A rank reported a mistake, whose exit code this error has, or lost the other ranks.
    """
    kills = kernel_kills()
    with TemporaryDirectory(prefix="memprof-") as folder, _started(trial, emit, Path(folder)) as (processes, channels):
        answers, failed = _listen(channels)
    if failed is None:
        rank = trial.rank if isinstance(trial, ScriptTrial) else None
        return gather([answers[number] for number in range(ranks_of(trial))], rank)
    answer = answers[failed]
    if answer is None:
        code = processes[failed].exitcode
        killed = code == -signal.SIGKILL and kernel_kills() > kills
        answer = outcome_of(WorkerDiedError(code, out_of_memory=killed), _spec_of(trial), trial.device)
    alike = [each for each in answers.values() if isinstance(each, Outcome) and each.run.reason == _reason(answer)]
    return _failure(answer, None if len(alike) == ranks_of(trial) else failed)


@contextmanager
def _started(trial: Trial | ScriptTrial, emit: Any, outputs: Path) -> Iterator[tuple[list[Any], list[Connection]]]:
    """Yield the ranks' processes and the channels on which they answer, and end all processes afterwards."""
    world_size = ranks_of(trial)
    pipes = [Pipe(duplex=False) for _ in range(world_size)]
    ours, theirs = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        given = (listening.fileno(), listening.getsockname()[1])
        arguments = (trial, emit, given, theirs, os.getpid(), outputs.resolve())
        context = start_processes(enter, arguments, nprocs=world_size, join=False, start_method="fork")
    for channel in theirs:
        channel.close()  # so that the end of a rank shows as the end of its channel
    try:
        yield context.processes, ours
    finally:
        for process in context.processes:
            process.kill()
        for process in context.processes:
            process.join()


def _listen(channels: list[Connection]) -> tuple[dict[int, Any], int | None]:
    """Return the ranks' answers, and the rank whose answer or death ends the trial; None if every rank finished."""
    answers: dict[int, Any] = {}
    open_channels = {channel: rank for rank, channel in enumerate(channels)}
    lost: int | None = None
    deadline: float | None = None
    while open_channels:
        left = None if deadline is None else max(0.0, deadline - monotonic())
        ready = wait(list(open_channels), left)
        if not ready:
            break
        for channel in ready:
            rank = open_channels.pop(channel)  # type: ignore[call-overload]
            answer = answers[rank] = _receive(channel)
            if isinstance(answer, Lost):
                lost, deadline = rank, deadline or monotonic() + _PATIENCE
            elif not (isinstance(answer, Outcome) and answer.run.status == "ok"):
                return answers | _heard_meanwhile(open_channels), rank
    return answers, lost


def _heard_meanwhile(channels: dict[Connection, int]) -> dict[int, Any]:
    """Return the answers of other ranks that arrive within a short time."""
    waiting, answers, deadline = dict(channels), dict[int, Any](), monotonic() + _GRACE
    while ready := wait(list(waiting), max(0.0, deadline - monotonic())):
        for channel in ready:
            answers[waiting.pop(channel)] = _receive(channel)  # type: ignore[call-overload]
    return answers


def _receive(channel: Any) -> Outcome | Mistake | Lost | None:
    try:
        return _MESSAGE.validate_json(channel.recv_bytes())
    except EOFError:
        return None


def _spec_of(trial: Trial | ScriptTrial) -> OptimizerSpec:
    return trial.substitution.spec if isinstance(trial, ScriptTrial) else trial.optimizer


def _reason(answer: Outcome | Mistake | Lost) -> str | None:
    return answer.run.reason if isinstance(answer, Outcome) else answer.message


def _failure(answer: Outcome | Mistake | Lost, rank: int | None) -> Outcome:
    """Return the outcome that ended the trial, named after the rank that it ended on; None means every rank."""
    if isinstance(answer, Mistake):
        raise MemprofError(answer.message, ExitCode(answer.exit_code))
    if isinstance(answer, Lost):
        raise MemprofError(f"rank {rank} lost the others: {answer.message}")
    if rank is None:
        return answer
    run = answer.run.model_copy(update={"rank": rank, "reason": f"rank {rank}: {answer.run.reason}"})
    return answer.model_copy(update={"run": run})
