"""Runs jobs in worker processes, one fresh process each, and survives whatever happens to them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from memprof.documents.comparison import OptimizerInfo, Run
from memprof.documents.jobs import Answer, Job, Mistake, Outcome, Step
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.errors import ExitCode, MemprofError
from memprof.workers.fork_server import kill_worker, receive_message, send_message

_Message = Annotated[Answer | Mistake | Step, Field(discriminator="kind")]
_MESSAGE: TypeAdapter[_Message] = TypeAdapter(_Message)

# The profiler announces itself on stderr in every worker; users' own PyTorch warnings come through Python.
_QUIET = {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}

# Threads that wait by spinning make a step ten times slower as soon as another process has one of the cores.
_PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class WorkerDiedError(MemprofError):
    """A worker ended without an answer.

    Attributes:
        out_of_memory: the kernel killed a process for want of memory meanwhile, and this one was killed.
    """

    def __init__(self, exit_code: int, out_of_memory: bool) -> None:
        self.out_of_memory = out_of_memory
        name = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
        reason = ": the machine ran out of memory" if out_of_memory else ""
        super().__init__(f"the worker process ended without a result ({name}){reason}")


def outcome_of(death: WorkerDiedError, spec: OptimizerSpec, device: str) -> Outcome:
    """Return the outcome of a trial whose worker died: out of memory if the kernel killed it for that."""
    run = Run(
        optimizer=OptimizerInfo(spec=spec.text, name=spec.name, options=spec.options),
        device=device,
        status="oom" if death.out_of_memory else "failed",
        reason=str(death),
    )
    return Outcome(run=run)


def kernel_kills() -> int:
    """Return how often the kernel killed a process for want of memory; 0 where it does not say (only Linux does)."""
    try:
        counters = Path("/proc/vmstat").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(counters[counters.index("oom_kill") + 1]) if "oom_kill" in counters else 0


class Launcher:
    """Starts the fork server at once and hands it one job at a time; use it in a `with` block.

    On leaving the block, also by an exception or Ctrl-C, the running worker and the server are killed.
    """

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise MemprofError("measuring needs fork(): run memprof on Linux, macOS or WSL", ExitCode.USAGE)
        self._control, child_end = socket.socketpair(socket.AF_UNIX)
        self._pid: int | None = None
        with child_end:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "memprof.workers.fork_server", str(child_end.fileno())],
                pass_fds=[child_end.fileno()],
                env={**_QUIET, **_PATIENT, **os.environ},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
            )

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pid is not None:
            kill_worker(self._pid)
        self._control.close()
        self._server.kill()
        self._server.wait()

    def run(self, job: Job, on_step: Callable[[Step], None] | None = None) -> Answer:
        """Run a job in a fresh process and return its answer.

        Raises:
            MemprofError: what the worker found wrong, with its exit code.
            WorkerDiedError: the worker was killed or crashed.
        """
        kills = kernel_kills()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send_message(self._control, job.model_dump(mode="json"), [theirs.fileno()])
            theirs.close()
            self._pid = int(self._receive()["pid"])
            answer = _read_answer(ours, on_step)
        if answer is not None:
            kill_worker(self._pid)  # it has said all; its clean-up (freeing tensors one by one) helps nobody
        send_message(self._control, {"wait_for": self._pid})
        exit_code = int(self._receive()["exit_code"])
        self._pid = None
        if answer is None:
            raise WorkerDiedError(exit_code, exit_code == -signal.SIGKILL and kernel_kills() > kills)
        if isinstance(answer, Mistake):
            raise MemprofError(answer.message, ExitCode(answer.exit_code))
        return answer

    def _receive(self) -> dict[str, Any]:
        received = receive_message(self._control)
        if received is None:
            raise MemprofError("the fork server ended; is PyTorch installed? `python -c 'import torch'` tells")
        return received[0]


def _read_answer(channel: socket.socket, on_step: Callable[[Step], None] | None) -> Answer | Mistake | None:
    for line in channel.makefile("r", encoding="utf-8"):
        message = _MESSAGE.validate_json(line)
        if not isinstance(message, Step):
            return message
        if on_step is not None:
            on_step(message)
    return None
