"""The code of a freshly forked worker: it runs one job and answers with messages, one JSON object per line."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from pydantic import BaseModel, TypeAdapter

from memprof.documents.jobs import Answer, Job, Mistake
from memprof.errors import ExitCode, MemprofError
from memprof.user_code import describe

_JOB: TypeAdapter[Job] = TypeAdapter(Job)

# The function that runs each kind of job, as `module:function`. It is called with the job and with a function that
# sends progress messages. Packages above this one are named here and imported nowhere, so that workers can serve them
# all.
JOBS: Mapping[str, str] = {
    "inquiry": "memprof.workers.inquiry:inquire",
    "trial": "memprof.measurement.run:run",
    "script-inquiry": "memprof.workers.inquiry:inquire_script",
    "script": "memprof.measurement.run:run_script",
    "script-forecast": "memprof.prediction.script:predict_script",
    "forecast": "memprof.prediction.run:run",
    "fit": "memprof.search.by_prediction:run",
    "weigh": "memprof.search.advise.evaluate:run",
}


def work(channel: socket.socket, request: dict[str, Any]) -> None:
    """Run the job of a request and send its answer. Errors are sent as messages and not raised.

    Everything that the user's code prints goes to stderr, because stdout is reserved for the results.

    Args:
        channel: The socket to send the messages on.
        request: The job, as a JSON object.
    """
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stream = channel.makefile("w", encoding="utf-8")

    def send(message: BaseModel) -> None:
        stream.write(message.model_dump_json() + "\n")
        stream.flush()

    with suppress(KeyboardInterrupt):
        answer = guarded(lambda: _answer(request, send))
        with suppress(OSError, ValueError):  # the user's code may have closed it
            sys.stdout.flush()  # this process is killed as soon as its answer is there
        send(answer)


def guarded(job: Callable[[], Answer]) -> Answer | Mistake:
    """Call a job and return its answer, or a message with the error that it raised.

    Args:
        job: The job as a function without arguments.
    """
    try:
        return job()
    except MemprofError as error:
        return Mistake(message=str(error), exit_code=error.exit_code)
    except Exception as error:
        if os.environ.get("MEMPROF_DEBUG"):
            traceback.print_exc()
        message = f"internal error in a trial: {describe(error)}; --debug shows the traceback"
        return Mistake(message=message, exit_code=ExitCode.FAILED)


def _answer(request: dict[str, Any], send: Callable[[BaseModel], None]) -> Answer:
    job = _JOB.validate_python(request)
    module, function = JOBS[job.job].split(":")
    answer: Answer = getattr(import_module(module), function)(job, send)
    return answer
