"""Jobs that wait for the engine's thread, and what other threads may ask of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from infinicore_infer.engine.config import EngineClosedError, EngineConfig, QueueFullError
from infinicore_infer.engine.jobs import Job

# How often jobs that only wait for files are looked at, for those whose time is over.
_LOOK_SECONDS = 0.05


class JobQueue:
    """A bounded queue that counts jobs until they are told of their end, and closes in steps.

    All methods may be called from any thread; only the engine's takes jobs and reports ends.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Make a queue for ``max_batch`` jobs in progress and ``max_queue`` besides."""
        self._room = config.max_batch + config.max_queue
        self._changed = threading.Condition()
        # Guarded by the condition.
        self._waiting: deque[Job] = deque()
        self._outstanding = 0
        self._telling = False
        self._woken = False
        self._draining = self._closing = False

    def __len__(self) -> int:
        """Return how many jobs wait; never blocks."""
        return len(self._waiting)

    @property
    def draining(self) -> bool:
        """Whether no more jobs are accepted."""
        return self._draining

    def submit(self, jobs: Sequence[Job], wait: bool) -> None:
        """Queue jobs, all or none; see :meth:`Engine.submit`."""
        if len(jobs) > self._room:
            raise QueueFullError(f"{len(jobs)} requests at once; there is room for {self._room}")
        with self._changed:
            while not self._draining and self._outstanding + len(jobs) > self._room:
                if not wait:
                    raise QueueFullError(f"the queue is full: {self._outstanding} requests")
                self._changed.wait()
            if self._draining:
                raise EngineClosedError("the engine is shutting down")
            self._waiting.extend(jobs)
            self._outstanding += len(jobs)
            self._changed.notify_all()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Mark jobs as no longer wanted."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify_all()

    def drain(self) -> None:
        """Accept no more jobs."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def close(self) -> None:
        """Have :meth:`wait_for_work` say that it is time to end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def wait_idle(self, timeout: float | None) -> bool:
        """Wait until no job is left and all are told; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._outstanding == 0 and not self._telling, timeout
            )

    def wait_for_work(self, busy: bool) -> bool:
        """Wait for something to do, unless busy; return ``False`` once the queue is closed."""
        with self._changed:
            while not (busy or self._woken or self._closing):
                if any(job.startable for job in self._waiting):
                    break
                self._changed.wait(_LOOK_SECONDS if self._waiting else None)
                # One of them may have been cancelled, or be late.
                busy = bool(self._waiting)
            self._woken = False
            return not self._closing

    def wake(self) -> None:
        """Have :meth:`wait_for_work` return."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def snapshot(self) -> list[Job]:
        """Return the jobs that wait, in order."""
        with self._changed:
            return list(self._waiting)

    def take(self) -> Job | None:
        """Remove and return the job that may start, of the lowest priority the first."""
        with self._changed:
            startable = (job for job in self._waiting if job.startable)
            job = min(startable, key=lambda job: job.priority, default=None)
            if job is not None:
                self._waiting.remove(job)
            return job

    def put_back(self, job: Job) -> None:
        """Have a job taken before all others of its priority."""
        with self._changed:
            self._waiting.appendleft(job)

    def ending(self, job: Job) -> None:
        """Count a job, waiting or taken, as ended; :meth:`told` must follow."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            self._outstanding -= 1
            self._telling = True

    def told(self) -> None:
        """Note that the ended job's receiver knows."""
        with self._changed:
            self._telling = False
            self._changed.notify_all()
