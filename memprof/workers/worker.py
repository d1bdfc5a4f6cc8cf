"""What a freshly forked worker does with its one job: answer with messages, one JSON object per line."""

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

# Who does which job: `module:function`, called with the job and with what sends signs of life. Rooms above this one are
# named here and nowhere imported, so that workers can serve them all.
JOBS: Mapping[str, str] = {
    "inquiry": "memprof.workers.inquiry:inquire",
    "trial": "memprof.measurement.run:run",
    "forecast": "memprof.prediction.run:run",
    "fit": "memprof.search.by_prediction:run",
    "weigh": "memprof.search.advise.evaluate:run",
}


def work(channel: socket.socket, request: dict[str, Any]) -> None:
    """Do the job that the request describes and send the answer; never raises.

    Whatever the user's code prints goes to stderr, so that stdout stays the results' own.
    """
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stream = channel.makefile("w", encoding="utf-8")

    def send(message: BaseModel) -> None:
        stream.write(message.model_dump_json() + "\n")
        stream.flush()

    with suppress(KeyboardInterrupt):
        send(guarded(lambda: _answer(request, send)))


def guarded(job: Callable[[], Answer]) -> Answer | Mistake:
    """Return what a job returns, or as a message what it raises."""
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
