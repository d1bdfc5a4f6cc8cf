"""How a worker's death is told: as an error, as the outcome of its trial, and whether the kernel killed it."""

from __future__ import annotations

import signal
from pathlib import Path

from memprof.documents.comparison import OptimizerInfo, Run
from memprof.documents.jobs import Outcome, Trial
from memprof.errors import MemprofError


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


def outcome_of(death: WorkerDiedError, trial: Trial) -> Outcome:
    """Return the outcome of a trial whose worker died: out of memory if the kernel killed it for that."""
    spec = trial.optimizer
    run = Run(
        optimizer=OptimizerInfo(spec=spec.text, name=spec.name, options=spec.options),
        device=trial.device,
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
