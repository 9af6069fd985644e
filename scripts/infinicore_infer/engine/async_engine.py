"""``AsyncEngine``: an engine for asyncio, and the streams of updates that it returns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from infinicore_infer.causal_lm import Prompt
from infinicore_infer.engine.engine import Engine
from infinicore_infer.engine.jobs import Job, Submission, Update
from infinicore_infer.engine.wakeups import Wakeups
from infinicore_infer.generate.results import GenerationPiece, GenerationResult


class AsyncStream(AsyncIterator[tuple[int, Update]]):
    """Updates of one or more jobs with the job's number, for the event loop that made it.

    Attributes:
        jobs: The jobs.
    """

    def __init__(self, wakeups: Wakeups | None = None) -> None:
        """Make a stream that belongs to the running event loop.

        Args:
            wakeups: Wakes the reader later; ``None``: every update does.
        """
        self._loop = asyncio.get_running_loop()
        self._wakeups = wakeups
        self.jobs: list[Job] = []
        self._updates: deque[tuple[int, Update]] = deque()
        self._ready = asyncio.Event()
        self._ended = 0

    @property
    def results(self) -> list[GenerationResult]:
        """The answers so far; complete once the stream has ended."""
        return [job.sequence.result for job in self.jobs]

    @property
    def pending(self) -> bool:
        """Whether the next update is here already."""
        return bool(self._updates)

    @property
    def ended(self) -> bool:
        """Whether all jobs have ended and all updates are taken."""
        return self._ended == len(self.jobs)

    async def wait(self) -> None:
        """Wait until an update may be here."""
        self._ready.clear()
        # One may have come before the clearing.
        if not self._updates:
            await self._ready.wait()

    def put(self, index: int, update: Update) -> None:
        """Receive an update; any thread, or with ``wakeups`` the engine's."""
        wake = not self._updates
        self._updates.append((index, update))
        if not wake:
            return
        if self._wakeups is None:
            self._loop.call_soon_threadsafe(self._ready.set)
        else:
            self._wakeups.add(self._loop, self._ready.set)

    async def __anext__(self) -> tuple[int, Update]:
        """Wait for the next update.

        Raises:
            EngineError: A job failed.
        """
        while not self._updates:
            if self.ended:
                raise StopAsyncIteration
            await self.wait()
        index, update = self._updates.popleft()
        self._ended += update.done
        if update.error is not None:
            raise update.error
        return index, update


class AsyncEngine:
    """An engine for asyncio.

    Attributes:
        engine: What it wraps.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def submit(self, submissions: Sequence[Submission]) -> AsyncStream:
        """Queue prompts, all or none; jobs of the stream are their answers, one after the other.

        Raises:
            ValueError: A prompt does not fit, or a setting is out of range.
            QueueFullError: There is no room.
            EngineClosedError: The engine is draining.
        """
        stream = AsyncStream(self.engine.wakeups)
        for submission in submissions:
            leader = None
            for number in range(len(submission.params)):
                sink = partial(stream.put, len(stream.jobs))
                job = self.engine.make_job(submission, sink, number=number, leader=leader)
                leader = leader or job
                stream.jobs.append(job)
        self.engine.submit(stream.jobs)
        return stream

    def cancel(self, stream: AsyncStream) -> None:
        """End answers nobody waits for any more."""
        self.engine.cancel(stream.jobs)

    async def stream(self, prompt: Prompt, **settings: Any) -> AsyncIterator[GenerationPiece]:
        """Continue a prompt, token by token; leaving the loop early cancels it.

        Args:
            prompt: Text or token ids.
            **settings: As :meth:`Qwen3ForCausalLM.generate`.
        """
        async with self._started(prompt, settings) as stream:
            async for _, update in stream:
                if update.piece is not None:
                    yield update.piece

    async def generate(self, prompt: Prompt, **settings: Any) -> GenerationResult:
        """Continue a prompt and return the whole answer; see :meth:`stream`."""
        async with self._started(prompt, settings) as stream:
            async for _ in stream:
                pass
            return stream.results[0]

    @asynccontextmanager
    async def _started(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncIterator[AsyncStream]:
        model = self.engine.model
        params = model.sampling_params(**settings)
        tokens = await asyncio.to_thread(model.encode, prompt)
        stream = self.submit([Submission(tokens, [params])])
        try:
            yield stream
        finally:
            self.cancel(stream)
