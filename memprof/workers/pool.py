"""A pool of fork servers that run several jobs side by side."""

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
        most: The largest number of servers to start. There are never more servers than cores that this process may use.
        launcher: A server that is already running. It is then the only one, and it keeps running after the block.

    Attributes:
        launchers: The servers. The first one serves the jobs that are run one after the other.
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
        """Start servers until there are `most`, or one for each core that this process may use.

        Args:
            most: The largest number of servers.
        """
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
        """Run all jobs and return their answers in the order of the jobs.

        Args:
            jobs: The jobs.
            on_step: Called with the index of a job and its progress message, from one of several threads.
            on_finish: Called with the index of a finished job, from one of several threads.
            tolerates: Returns whether an error may take the place of its job's answer while the other jobs go on.

        Returns:
            The answers, with an error in the place of each answer whose error is tolerated.

        Raises:
            MemprofError: A worker failed with an error that is not tolerated; the first such error is raised.
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
        except MemprofError:  # the other jobs end by themselves, and the caller may still need the servers
            raise
        except BaseException:
            self._stack.close()  # kills the workers, so that the threads that wait for them end
            raise
        finally:
            pool.shutdown(cancel_futures=True)
