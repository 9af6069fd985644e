"""Many requests at once from Python: ``LLM`` for lists of prompts, ``AsyncEngine`` for asyncio.

Example:
    from infinicore_infer.engine.llm import LLM

    with LLM("Qwen3-0.6B") as llm:
        for result in llm.generate(["One", "Two"], max_steps=20):
            print(result.text)
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from infinicore_infer.causal_lm import Prompt, Qwen3ForCausalLM
from infinicore_infer.engine.engine import Engine
from infinicore_infer.engine.jobs import (
    ConstrainedSequence,
    Constraint,
    DeadlineError,
    EngineClosedError,
    EngineConfig,
    EngineError,
    EngineStats,
    Job,
    QueueFullError,
    StepFailedError,
    Update,
)
from infinicore_infer.engine.wakeups import Wakeups
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.generate.sequence import GenerationPiece, GenerationResult
from infinicore_infer.text.chat_template import Message

__all__ = [
    "LLM",
    "AsyncEngine",
    "AsyncStream",
    "DeadlineError",
    "Engine",
    "EngineClosedError",
    "EngineConfig",
    "EngineError",
    "EngineStats",
    "QueueFullError",
    "StepFailedError",
    "make_job",
]


def make_job(
    engine: Engine,
    prompt: Sequence[int],
    params: SamplingParams,
    sink: Callable[[Update], object],
    *,
    name: str = "",
    timeout: float | None = None,
    leader: Job | None = None,
    prompt_logprobs: int | None = None,
    stop_tokens: Sequence[int] = (),
    constraint: Constraint | None = None,
    repetition: RepetitionDetector | None = None,
) -> Job:
    """Return a job for :meth:`Engine.submit`.

    Args:
        engine: The engine.
        prompt: Checked token ids; see :meth:`Qwen3ForCausalLM.encode`.
        params: Sampling settings.
        sink: Receives the updates, on the engine's thread; must not block.
        name: For messages.
        timeout: Seconds from now after which to give up.
        leader: A job with the same prompt whose prefix to reuse.
        prompt_logprobs: Score the prompt and report this many likeliest tokens each.
        stop_tokens: Further tokens that end the answer.
        constraint: Which tokens may come.
        repetition: Ends the answer when it repeats itself.

    Raises:
        ValueError: The prompt does not fit, or a setting is out of range.
    """
    model = engine.model
    if params.logprobs is None and not params.lookup:
        params = replace(params, lookup=engine.config.lookup)
    sequence = ConstrainedSequence(
        prompt,
        params,
        dctx=engine.context_length,
        dvoc=model.meta.dvoc,
        end_tokens=[*model.meta.end_tokens, *stop_tokens],
        tokenizer=model._tokenizer,
    )
    sequence.constraint = constraint
    sequence.repetition = repetition
    deadline = None if timeout is None else time.monotonic() + timeout
    return Job(sequence, sink, name, deadline, leader, prompt_logprobs)


class AsyncStream(AsyncIterator[tuple[int, Update]]):
    """Updates of one or more jobs with the job's number, for the event loop that made it.

    Attributes:
        jobs: The jobs.
    """

    def __init__(self, wakeups: Wakeups | None = None) -> None:
        """Belong to the running loop.

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
        """Wrap a running engine."""
        self.engine = engine

    def submit(
        self,
        groups: Sequence[tuple[Sequence[int], Sequence[SamplingParams]]],
        *,
        constraint: Callable[[], Constraint] | None = None,
        repetition: Callable[[], RepetitionDetector] | None = None,
        **options: Any,
    ) -> AsyncStream:
        """Queue prompts, each once per entry of its settings, all or none.

        Args:
            groups: Token ids and the settings of each answer to them.
            constraint: Makes the constraint of one answer.
            repetition: Makes what ends one answer when it repeats itself.
            **options: As :func:`make_job`.

        Raises:
            ValueError: As :func:`make_job`.
            QueueFullError: There is no room.
            EngineClosedError: The engine is draining.
        """
        stream = AsyncStream(self.engine.wakeups)
        for prompt, settings in groups:
            leader = None
            for params in settings:
                job = make_job(
                    self.engine,
                    prompt,
                    params,
                    partial(stream.put, len(stream.jobs)),
                    leader=leader,
                    constraint=constraint() if constraint else None,
                    repetition=repetition() if repetition else None,
                    **options,
                )
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
        stream = self.submit([(await asyncio.to_thread(model.encode, prompt), [params])])
        try:
            yield stream
        finally:
            self.cancel(stream)


class LLM:
    """A model for programs that have many prompts. A context manager.

    Attributes:
        model: The loaded model.
        engine: The engine; other threads may use it at the same time.
    """

    def __init__(self, model_path: str, config: EngineConfig | None = None, **options: Any) -> None:
        """Load a model.

        Args:
            model_path: The checkpoint's folder.
            config: Limits of the engine.
            **options: As :class:`Qwen3ForCausalLM`.
        """
        self.model = Qwen3ForCausalLM(model_path, **options)
        try:
            self.engine = Engine(self.model, config)
        except BaseException:
            self.model.close()
            raise

    def generate(
        self, prompts: Prompt | Sequence[Prompt], **settings: Any
    ) -> list[GenerationResult]:
        """Continue prompts; greedy answers equal those of single calls.

        Args:
            prompts: A text, token ids, or a list of either. With a seed, prompt i uses seed + i.
            **settings: As :meth:`Qwen3ForCausalLM.generate`.

        Returns:
            One result per prompt, in order.

        Raises:
            ValueError: A prompt does not fit the context, or a setting is out of range.
            EngineError: A request failed; the others are cancelled.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        items: Sequence[Any] = [prompts] if single else prompts
        params = self.model.sampling_params(**settings)
        jobs: list[Job] = []
        errors: list[Exception] = []
        left = threading.Semaphore(0)

        def receive(update: Update) -> None:
            if update.done:
                if update.error is not None:
                    errors.append(update.error)
                left.release()

        for i, prompt in enumerate(items):
            seed = None if params.seed is None else (params.seed + i) % 2**64
            settings_i = replace(params, seed=seed)
            jobs.append(make_job(self.engine, self.model.encode(prompt), settings_i, receive))
        submitted = 0
        try:
            for job in jobs:
                self.engine.submit([job], wait=True)
                submitted += 1
            for _ in jobs:
                left.acquire()
                if errors:
                    raise errors[0]
        finally:
            self.engine.cancel(jobs[:submitted])
        return [job.sequence.result for job in jobs]

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool = True,
        **settings: Any,
    ) -> list[GenerationResult]:
        """Answer conversations; see :meth:`generate` and :meth:`Qwen3ForCausalLM.chat`."""
        prompts = [self.model.chat_prompt(item, tools, enable_thinking) for item in conversations]
        return self.generate(prompts, **settings)

    def close(self) -> None:
        """End the engine and free the model."""
        self.engine.close()
        self.model.close()

    def __enter__(self) -> LLM:
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()
