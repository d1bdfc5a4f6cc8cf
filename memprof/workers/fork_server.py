"""The fork server: it imports torch once, then forks one worker process for each job.

It takes requests on a Unix socket. It stays single-threaded and never uses CUDA, so that the forked workers can. Each
request carries the file descriptor that the worker answers on. When the socket closes, because the parent process ended
for whatever reason, the server kills the workers that still run and ends.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

_CHUNK = 1 << 16


def send_message(control: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send a message as one line of JSON.

    Args:
        control: The socket to the other process.
        message: The message, as a JSON object.
        descriptors: File descriptors to pass along; they arrive with the first byte of the line.
    """
    line = json.dumps(message).encode() + b"\n"
    sent = socket.send_fds(control, [line], list(descriptors))
    if sent < len(line):  # otherwise send nothing: the receiver may end as soon as it has the whole line
        control.sendall(line[sent:])


def receive_message(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receive a message.

    Args:
        control: The socket to the other process.

    Returns:
        The message and its file descriptors, or None if the other side has closed the socket.
    """
    line = b""
    descriptors: list[int] = []
    while not line.endswith(b"\n"):
        chunk, received, _, _ = socket.recv_fds(control, _CHUNK, 1)
        if not chunk:
            return None
        line += chunk
        descriptors += received
    message: dict[str, Any] = json.loads(line)
    return message, descriptors


def serve(control: socket.socket) -> None:
    """Fork a worker for each request until the socket closes.

    Args:
        control: The socket on which the requests come.
    """
    running: set[int] = set()
    try:
        while received := receive_message(control):
            message, descriptors = received
            if descriptors:
                if _has_ranks(message):
                    preload(_FOR_RANKS)
                pid = _fork_worker(control, descriptors[0], message)
                running.add(pid)
                send_message(control, {"pid": pid})
            else:
                _, status = os.waitpid(message["wait_for"], 0)
                running.discard(message["wait_for"])
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(message["wait_for"], signal.SIGKILL)  # processes that the worker started and left behind
                send_message(control, {"exit_code": os.waitstatus_to_exitcode(status)})
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent closed the socket while this process answered
    finally:
        for pid in running:
            kill_worker(pid)


def _fork_worker(control: socket.socket, descriptor: int, request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        control.close()
        _become_worker(descriptor, request)
    os.close(descriptor)
    return pid


def _become_worker(descriptor: int, request: dict[str, Any]) -> NoReturn:
    exit_code = 1
    os.setpgid(0, 0)  # so that the processes that the worker starts (data loaders) can be ended together with it
    try:
        from memprof.workers.worker import work

        work(socket.socket(fileno=descriptor), request)
        exit_code = 0
    finally:
        sys.stderr.flush()
        os._exit(exit_code)  # skip the clean-up at exit, which would act on resources of the server


def kill_worker(pid: int) -> None:
    """Kill a worker and its process group, if they still exist.

    Args:
        pid: The process id of the worker.
    """
    for kill in (os.killpg, os.kill):  # also the process itself, because its group may not exist yet
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


# Everything that a trial imports. torch._dynamo is among it because the first optimizer that is built in a process
# imports it, which takes about a second; sm3 because an `sm3.py` beside the user's model must not be taken for it.
PRELOADED = ("memprof.workers.worker", "memprof.workers.inquiry", "memprof.measurement.trial", "sm3", "torch._dynamo")
_FOR_RANKS = ("memprof.measurement.ranks.launch",)  # imported when the first job with several ranks arrives


def _has_ranks(request: dict[str, Any]) -> bool:
    measured = request.get("job") in ("trial", "script")
    shared = request.get("recipe", {}).get("strategy", "single") != "single" or request.get("world_size") is not None
    return bool(measured and shared)


def preload(modules: Sequence[str]) -> None:
    """Import modules that workers need, so that every worker has them from its start.

    Args:
        modules: The full names of the modules.
    """
    if all(module in sys.modules for module in modules):
        return
    gc.disable()  # the imports create a million lasting objects; collecting takes a quarter of the imports' time
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # keeps the garbage collector of the workers from writing to, and so copying, the shared pages
    gc.enable()


def main(descriptor: int) -> None:
    """Import what trials need, then serve.

    Args:
        descriptor: The file descriptor of the Unix socket on which requests come.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    preload(PRELOADED)
    serve(control)
