"""Runs each job in a fresh worker process, and keeps working if a worker crashes or is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Annotated, Any, Protocol

from pydantic import Field, TypeAdapter

from memprof.documents.jobs import Answer, Job, Mistake, Step
from memprof.errors import ExitCode, MemprofError
from memprof.workers.death import ServerDiedError, WorkerDiedError, kernel_kills
from memprof.workers.fork_server import kill_worker, receive_message, send_message

_Message = Annotated[Answer | Mistake | Step, Field(discriminator="kind")]
_MESSAGE: TypeAdapter[_Message] = TypeAdapter(_Message)

ENVIRONMENT = {
    # Silences PyTorch's C++ log: the profiler would announce itself on stderr in every worker. The warnings that
    # concern users come through Python and still appear.
    "KINETO_LOG_LEVEL": "99",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # OpenMP threads shall sleep while they wait: spinning threads make a step ten times slower as soon as another
    # process occupies one of the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""What a fork server has in its environment, unless the user has set it."""

# `python -m` and `python -c` look for modules in the current folder first, where a `random.py` or `torch.py` of the
# user may lie; a server and its workers must import the installed modules. (`-P` needs Python 3.11.)
_START_SERVER = """
import sys
if sys.path[0] == "":
    del sys.path[0]
from memprof.workers.fork_server import main
main(int(sys.argv[1]))
"""


class Server(Protocol):
    """The part of a fork server's process that a launcher needs."""

    def kill(self) -> None:
        """Kill the process."""

    def wait(self) -> int:
        """Wait for the end of the process and return its exit code."""


def start_server(control: socket.socket) -> Server:
    """Start a fork server in a process of its own.

    Args:
        control: The server's end of the socket on which it takes requests.
    """
    return subprocess.Popen(
        [sys.executable, "-c", _START_SERVER, str(control.fileno())],
        pass_fds=[control.fileno()],
        env={**ENVIRONMENT, **os.environ},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # so that Ctrl-C reaches only this process, which then ends the others
    )


class Launcher:
    """Starts a fork server and gives it one job at a time; use it in a `with` block.

    When the block is left, also by an exception or Ctrl-C, the running worker and the server are killed.

    Raises:
        MemprofError: This system has no `fork()`.
    """

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise MemprofError("measuring needs fork(): run memprof on Linux, macOS or WSL", ExitCode.USAGE)
        self._pid: int | None = None
        self._start()

    def _start(self) -> None:
        self._control, child_end = socket.socketpair(socket.AF_UNIX)
        self._answered = False
        with child_end:
            self._server = start_server(child_end)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._pid is not None:
            kill_worker(self._pid)
            self._pid = None
        self._control.close()
        self._server.kill()
        self._server.wait()

    def run(self, job: Job, on_step: Callable[[Step], None] | None = None) -> Answer:
        """Run a job in a fresh process and return its answer.

        Args:
            job: The job.
            on_step: Called with each progress message of the worker.

        Raises:
            MemprofError: The worker reported an error; it has the worker's message and exit code.
            WorkerDiedError: The worker was killed or crashed, or the server that would have started it; later jobs get
                a new server.
        """
        kills = kernel_kills()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._send(job.model_dump(mode="json"), [theirs.fileno()])
            theirs.close()
            self._pid = int(self._receive()["pid"])
            self._answered = True
            answer = _read_answer(ours, on_step)
        if answer is not None:
            kill_worker(self._pid)  # the answer is complete, so its clean-up (freeing each tensor) is not worth waiting
        try:
            self._send({"wait_for": self._pid})
            exit_code = int(self._receive()["exit_code"])
            self._pid = None
        except ServerDiedError:
            if answer is None:
                raise
        if answer is None:
            raise WorkerDiedError(exit_code, exit_code == -signal.SIGKILL and kernel_kills() > kills)
        if isinstance(answer, Mistake):
            raise MemprofError(answer.message, ExitCode(answer.exit_code))
        return answer

    def _send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        try:
            send_message(self._control, message, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            raise self._server_died() from None

    def _receive(self) -> dict[str, Any]:
        try:
            received = receive_message(self._control)
        except ConnectionResetError:
            received = None
        if received is None:
            raise self._server_died()
        return received[0]

    def _server_died(self) -> MemprofError:
        """Start another server in the place of one that has ended, and return the error to raise for this job.

        A server that ends before its first answer has a cause that lasts, so it is not replaced.
        """
        if not self._answered:
            return MemprofError("the fork server ended; is PyTorch installed? `python -c 'import torch'` tells")
        self._end()
        self._start()
        return ServerDiedError()


def _read_answer(channel: socket.socket, on_step: Callable[[Step], None] | None) -> Answer | Mistake | None:
    for line in channel.makefile("r", encoding="utf-8"):
        message = _MESSAGE.validate_json(line)
        if not isinstance(message, Step):
            return message
        if on_step is not None:
            on_step(message)
    return None
