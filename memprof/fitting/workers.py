"""Several fork servers at work on the parts of one job."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from types import TracebackType

from memprof.plan import Answer, Job, Step
from memprof.training.launcher import Launcher

OnStep = Callable[[int, Step], None]


class Workers:
    """Runs jobs side by side, each in a fresh process; use it in a `with` block.

    Args:
        most: servers to start at most; there is never one more than this process may use cores.
        launcher: one that runs already, to be used alone; it is not ended.
    """

    def __init__(self, most: int, launcher: Launcher | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._stack = ExitStack()
        count = max(1, min(most, cores)) if launcher is None else 0
        started = [self._stack.enter_context(Launcher()) for _ in range(count)]
        self.launchers = [launcher] if launcher is not None else started

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, jobs: Sequence[Job], on_step: OnStep, on_finish: Callable[[int], None] | None = None) -> list[Answer]:
        """Run all jobs and return their answers in order.

        Args:
            jobs: what to do.
            on_step: told the job's number and its sign of life, from one of several threads.
            on_finish: told the number of a job that is done, likewise.

        Raises:
            MemprofError: what the first worker that failed found wrong.
        """
        free: SimpleQueue[Launcher] = SimpleQueue()
        for launcher in self.launchers:
            free.put(launcher)

        def work(number: int) -> Answer:
            launcher = free.get()
            try:
                answer = launcher.run(jobs[number], lambda step: on_step(number, step))
            finally:
                free.put(launcher)
            if on_finish is not None:
                on_finish(number)
            return answer

        pool = ThreadPoolExecutor(len(self.launchers))
        try:
            waiting = [pool.submit(work, number) for number in range(len(jobs))]
            return [one.result() for one in waiting]
        except BaseException:
            self._stack.close()  # ends what the threads wait for
            raise
        finally:
            pool.shutdown(cancel_futures=True)
