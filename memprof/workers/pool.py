"""Several fork servers at work on the parts of one job."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from types import TracebackType

from memprof.documents.jobs import Answer, Job, Step
from memprof.errors import MemprofError
from memprof.workers.launcher import Launcher

OnStep = Callable[[int, Step], None]
OnFinish = Callable[[int], None]
Tolerates = Callable[[MemprofError], bool]


class Workers:
    """Runs jobs side by side, each in a fresh process; use it in a `with` block.

    Args:
        most: servers to start at most; there is never one more than this process may use cores.
        launcher: one that runs already, to be used alone; it is not ended.

    Attributes:
        launchers: the servers, the first for whatever is done one by one.
    """

    def __init__(self, most: int, launcher: Launcher | None = None) -> None:
        self._stack = ExitStack()
        self._alone = launcher is not None
        self.launchers = [] if launcher is None else [launcher]
        self.grow(max(1, most))

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def grow(self, most: int) -> None:
        """Start servers until there are so many, where more may be started."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        while not self._alone and len(self.launchers) < min(most, cores):
            self.launchers.append(self._stack.enter_context(Launcher()))

    def run(
        self,
        jobs: Sequence[Job],
        on_step: OnStep,
        on_finish: OnFinish = lambda number: None,
        tolerates: Tolerates = lambda error: False,
    ) -> list[Answer | MemprofError]:
        """Run all jobs and return their answers in order.

        Args:
            jobs: what to do.
            on_step: told the job's number and its sign of life, from one of several threads.
            on_finish: told the number of a job that is done, likewise.
            tolerates: whether an error takes the place of its job's answer, and the others go on.

        Raises:
            MemprofError: what the first worker that failed found wrong, if that is not tolerated.
        """

        def work(launcher: Launcher, number: int) -> Answer | MemprofError:
            answer: Answer | MemprofError
            try:
                answer = launcher.run(jobs[number], lambda step: on_step(number, step))
            except MemprofError as error:
                if not tolerates(error):
                    raise
                answer = error
            on_finish(number)
            return answer

        if len(self.launchers) == 1 or len(jobs) == 1:
            return [work(self.launchers[0], number) for number in range(len(jobs))]
        return self._side_by_side(work, len(jobs))

    def _side_by_side(
        self, work: Callable[[Launcher, int], Answer | MemprofError], count: int
    ) -> list[Answer | MemprofError]:
        free: SimpleQueue[Launcher] = SimpleQueue()
        for launcher in self.launchers:
            free.put(launcher)

        def work_when_free(number: int) -> Answer | MemprofError:
            launcher = free.get()
            try:
                return work(launcher, number)
            finally:
                free.put(launcher)

        pool = ThreadPoolExecutor(len(self.launchers))
        try:
            waiting = [pool.submit(work_when_free, number) for number in range(count)]
            return [one.result() for one in waiting]
        except MemprofError:  # what else runs ends by itself, and the servers may be needed
            raise
        except BaseException:
            self._stack.close()  # ends what the threads wait for
            raise
        finally:
            pool.shutdown(cancel_futures=True)
