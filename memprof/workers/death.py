"""What to report when a worker process dies: an error, the outcome of its trial, and whether the kernel killed it."""

from __future__ import annotations

import signal
from pathlib import Path

from memprof.documents.comparison import OptimizerInfo, Run
from memprof.documents.jobs import Outcome
from memprof.documents.optimizer_spec import OptimizerSpec
from memprof.errors import MemprofError


class WorkerDiedError(MemprofError):
    """A worker process ended without an answer.

    Args:
        exit_code: The exit code of the process; a negative one is the number of the signal that ended it.
        out_of_memory: Whether the worker was killed while the kernel's out-of-memory killer ended a process.
    """

    def __init__(self, exit_code: int, out_of_memory: bool) -> None:
        self.out_of_memory = out_of_memory
        name = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
        reason = ": the machine ran out of memory" if out_of_memory else ""
        super().__init__(f"the worker process ended without a result ({name}){reason}")


class ServerDiedError(WorkerDiedError):
    """The process that starts the workers ended, and with it the trial that it was to start or was running."""

    def __init__(self) -> None:
        self.out_of_memory = False
        MemprofError.__init__(self, "the process that starts the trials was ended from outside, and this trial with it")


def outcome_of(death: WorkerDiedError, spec: OptimizerSpec, device: str) -> Outcome:
    """Return the outcome of a trial whose worker died.

    The status is `oom` if the kernel killed the worker because memory ran out, and `failed` otherwise.

    Args:
        death: How the worker died.
        spec: The optimizer of the trial.
        device: The name of the trial's device.
    """
    run = Run(
        optimizer=OptimizerInfo(spec=spec.text, name=spec.name, options=spec.options),
        device=device,
        status="oom" if death.out_of_memory else "failed",
        reason=str(death),
    )
    return Outcome(run=run)


def kernel_kills() -> int:
    """Return how many processes the kernel has killed because memory ran out (`oom_kill` in Linux's `/proc/vmstat`).

    Other systems do not report this number, and the answer is 0 there.
    """
    try:
        counters = Path("/proc/vmstat").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(counters[counters.index("oom_kill") + 1]) if "oom_kill" in counters else 0
