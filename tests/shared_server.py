"""One process that has imported PyTorch, of which the commands that tests start get their fork servers.

A command imports PyTorch for each fork server that it starts, which takes 3 to 6 s of processor time. Here the server
is forked from a process that has done so. Everything else is as users have it: the command, its workers, its ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from memprof.workers import launcher
from memprof.workers.fork_server import PRELOADED, preload, receive_message, send_message, serve
from tests import children

# What a command runs instead of `python -m memprof`.
COMMAND = """
import sys
from tests.shared_server import use
use(sys.argv.pop(1))
from memprof.cli import main
sys.exit(main())
"""


@contextmanager
def shared_server(address: str) -> Iterator[None]:
    """Keep the process for the `with` block.

    Args:
        address: The path of the Unix socket that it listens on.
    """
    code = f"from tests.shared_server import listen; listen({address!r})"
    with children.started([sys.executable, "-c", code], seconds=7200, env={**launcher.ENVIRONMENT, **os.environ}):
        yield


def listen(address: str) -> None:
    """Fork a fork server for everyone who connects and says where it is to run and in which environment."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    preload(PRELOADED)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _become_server(client)
            client.close()


def _become_server(client: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    _, (control, out, err), _, _ = socket.recv_fds(client, 1, 3)
    received = receive_message(client)
    assert received is not None
    message, _ = received
    os.chdir(message["cwd"])
    os.environ.clear()
    os.environ.update(message["environment"])
    sys.path[:] = message["path"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    send_message(client, {"pid": os.getpid()})
    client.close()
    try:
        serve(socket.socket(fileno=control))
    finally:
        os._exit(0)


class _Forked:
    """A forked server, with the methods of `subprocess.Popen` that a launcher uses."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._process.kill()

    def wait(self) -> int:
        with suppress(psutil.NoSuchProcess):
            self._process.wait()
        return 0


def use(address: str) -> None:
    """Have the launchers of this process get their servers from the one that listens on this address."""

    def start_server(control: socket.socket) -> _Forked:
        deadline = time.monotonic() + children.SECONDS
        with socket.socket(socket.AF_UNIX) as client:
            while True:  # until it has imported PyTorch
                try:
                    client.connect(address)
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    assert time.monotonic() < deadline, "the shared server does not answer"
                    time.sleep(0.05)
            here = {
                "cwd": os.getcwd(),
                "environment": {**launcher.ENVIRONMENT, **os.environ},
                "path": list(filter(None, sys.path)),
            }
            socket.send_fds(client, [b"\n"], [control.fileno(), 1, 2])
            send_message(client, here)
            answer = receive_message(client)
        assert answer is not None
        return _Forked(answer[0]["pid"])

    launcher.start_server = start_server
