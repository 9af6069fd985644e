"""Embeds and judges texts of many requests together, from a thread of its own.

Each step takes from every request in turn, so a request of one text does not wait for one of
thousands. Steps hold no answers, so they are as large as the engine's settings allow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.engine.config import (
    DeadlineError,
    EngineClosedError,
    EngineConfig,
    QueueFullError,
    StepFailedError,
)
from infinicore_infer.generate.pooling import PooledText, pool_step
from infinicore_infer.native.model import NativeModel

_LOG = logging.getLogger("infinicore_infer.engine")

States = NDArray[np.float32]


@dataclass(eq=False, slots=True)
class PoolingJob:
    """The texts of one request.

    Attributes:
        texts: All of them.
        future: Their last hidden states, float32 [texts, d], or why there are none; cancelling it
            ends the job.
        name: For messages.
        deadline: When to give up, in ``time.monotonic()`` seconds.
    """

    texts: Sequence[PooledText]
    name: str = ""
    deadline: float | None = None
    future: Future[States] = field(default_factory=Future)
    _left: deque[PooledText] = field(default_factory=deque, repr=False)

    def __post_init__(self) -> None:
        """Begin with all texts to compute."""
        self._left.extend(self.texts)

    def left(self) -> Iterator[PooledText]:
        """Return the texts that are not computed yet."""
        while self._left and self._left[0].finished:
            self._left.popleft()
        return (text for text in self._left if not text.finished)

    @property
    def error(self) -> Exception | None:
        """Why one of its texts could not be computed."""
        return next((text.error for text in self.texts if text.error is not None), None)


class PoolingEngine:
    """Runs jobs on a model from a thread of its own. All methods may be called from any thread.

    Attributes:
        tokens: Tokens of the jobs that have ended.
    """

    def __init__(self, model: NativeModel, config: EngineConfig) -> None:
        """Start the thread.

        Args:
            model: Computes the steps.
            config: ``step_tokens`` of it, and how many jobs there may be.
        """
        self.tokens = 0
        self._model = model
        self._budget = config.step_tokens
        self._room = config.max_batch + config.max_queue
        self._changed = threading.Condition()
        # Guarded by the condition; only the thread removes jobs.
        self._jobs: list[PoolingJob] = []
        self._draining = self._closing = False
        self._thread = threading.Thread(target=self._run, name="pooling", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return how many jobs there are; never blocks."""
        return len(self._jobs)

    def submit(
        self, texts: Sequence[PooledText], *, name: str = "", timeout: float | None = None
    ) -> Future[States]:
        """Queue the texts of a request.

        Args:
            texts: At least one.
            name: For messages.
            timeout: Seconds after which to give up; ``None``: never.

        Returns:
            Their states, float32 [texts, d]; cancelling it ends the work.

        Raises:
            QueueFullError: There is no room.
            EngineClosedError: The engine is draining or closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        job = PoolingJob(texts, name, deadline)
        with self._changed:
            if self._draining:
                raise EngineClosedError("the engine is shutting down")
            if len(self._jobs) >= self._room:
                raise QueueFullError(f"the queue is full: {len(self._jobs)} requests")
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def drain(self) -> None:
        """Accept no more jobs; those accepted go on."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until no job is left; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def close(self) -> None:
        """End the thread; jobs that are left fail."""
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify_all()
        self._thread.join()

    # ------------------------------------------------------------------ the engine's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs) or self._closing)
                jobs, closing = list(self._jobs), self._closing
            if closing:
                for job in jobs:
                    self._end(job, EngineClosedError("the engine was closed"))
                return
            try:
                self._cycle(jobs)
            except Exception as error:
                _LOG.exception("a step of %d requests failed", len(jobs))
                for job in jobs:
                    self._end(job, StepFailedError(f"the step failed: {error}"))
            # The next one to be served first; a job that has just come is the last.
            with self._changed:
                self._jobs = self._jobs[1:] + self._jobs[:1]

    def _cycle(self, jobs: Sequence[PoolingJob]) -> None:
        now = time.monotonic()
        going = []
        for job in jobs:
            if job.future.cancelled():
                self._end(job, None)
            elif job.deadline is not None and now > job.deadline:
                self._end(job, DeadlineError("the request took longer than allowed"))
            else:
                going.append(job)
        turns = zip_longest(*(job.left() for job in going))
        pool_step(self._model, (text for turn in turns for text in turn if text), self._budget)
        for job in going:
            if job.error is not None or not any(True for _ in job.left()):
                self._end(job, job.error)

    def _end(self, job: PoolingJob, error: Exception | None) -> None:
        """Free what a job holds, then tell whoever waits for it."""
        for text in job.texts:
            text.release()
        try:
            if error is not None:
                job.future.set_exception(error)
            elif not job.future.cancelled():
                states = [text.state for text in job.texts if text.state is not None]
                job.future.set_result(np.stack(states))
        except InvalidStateError:
            pass  # cancelled meanwhile
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
            self.tokens += sum(len(text.tokens) for text in job.texts)
            self._changed.notify_all()
