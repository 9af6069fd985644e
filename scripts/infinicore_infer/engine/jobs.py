"""What goes into the engine and comes out of it: jobs, updates, settings, statistics, errors."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from ctypes import POINTER, c_uint32
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.engine.prefix_cache import PrefixNode
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.sequence import GenerationPiece, GenerationSequence, TokenLogprobs
from infinicore_infer.native.model import StepRequest, StepResult

_LOG = logging.getLogger("infinicore_infer.engine")
_ARRIVALS = itertools.count()


class EngineError(Exception):
    """A request was not answered for a reason that is not the request's own."""


class QueueFullError(EngineError):
    """There is no room for another request now."""


class EngineClosedError(EngineError):
    """The engine is shutting down."""


class DeadlineError(EngineError):
    """The request's time is over."""


class StepFailedError(EngineError):
    """The library or this program failed while computing the request."""


@dataclass(slots=True)
class EngineConfig:
    """Limits of an engine.

    Attributes:
        max_batch: Most requests computed together.
        max_queue: Most requests waiting besides.
        step_tokens: Most tokens of a step.
        step_seconds: How long a step may take while answers are in progress; parts of prompts are
            cut to fit. With fewer than 16 requests, down to half of it; without answers, twice.
        prefix_cache_bytes: KV memory for remembered prefixes; 0: none; ``None``: half of it.
        prefix_dir: Folder for prefixes that many requests share; ``None``: none is kept on disk.
        prefix_disk_bytes: Most bytes of all files in it.
        lookup: Most tokens of an answer to guess per step from repetitions in prompt and answer,
            0 to 64; 0: none. Not where log-probabilities or a constraint are wanted.
    """

    max_batch: int = 16
    max_queue: int = 256
    step_tokens: int = 512
    step_seconds: float = 0.5
    prefix_cache_bytes: int | None = None
    prefix_dir: Path | None = None
    prefix_disk_bytes: int = 4 << 30
    lookup: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of range.
        """
        for name, low in (("max_batch", 1), ("max_queue", 0), ("step_tokens", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not self.step_seconds > 0:
            raise ValueError(f"step_seconds must be above 0, got {self.step_seconds}")
        if self.prefix_cache_bytes is not None and self.prefix_cache_bytes < 0:
            raise ValueError("prefix_cache_bytes must not be negative")
        if self.prefix_dir is not None and self.prefix_cache_bytes == 0:
            raise ValueError("prefix_dir needs a prefix cache: prefix_cache_bytes is 0")


@dataclass(slots=True)
class EngineStats:
    """Gauges as of the latest step, and counters since the start.

    ``kv_used_bytes`` includes ``prefix_bytes``; ``caches`` includes those of remembered prefixes.
    """

    running: int = 0
    waiting: int = 0
    draining: bool = False
    kv_used_bytes: int = 0
    kv_limit_bytes: int = 0
    caches: int = 0
    prefix_bytes: int = 0
    prefix_nodes: int = 0
    prefix_hits: int = 0
    prefix_lookups: int = 0
    prefix_loads: int = 0
    prefix_saves: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    failed_steps: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class Update:
    """News of a job.

    Attributes:
        piece: A new token.
        error: Why the job failed; ``done`` is set then.
        done: Whether this is the last update.
    """

    piece: GenerationPiece | None = None
    error: Exception | None = None
    done: bool = False


class Constraint(Protocol):
    """Decides which tokens may come next, as a grammar does. Used by the engine's thread only."""

    def mask(self) -> NDArray[np.uint32] | None:
        """Return a bit mask [(dvoc + 31) / 32] of allowed tokens, or ``None`` for all."""

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""


class ConstrainedSequence(GenerationSequence):
    """A sequence whose tokens a constraint may limit, and which may end when it repeats itself.

    Its ``finish_reason`` may also be ``"repetition"``.
    """

    constraint: Constraint | None = None
    repetition: RepetitionDetector | None = None
    _mask: NDArray[np.uint32] | None = None

    def request(self, count: int, drafts: Sequence[int] = ()) -> StepRequest:
        """Return the request for the next ``count`` known tokens, with the constraint's mask."""
        request = super().request(count, drafts)
        if self.constraint is not None and request.sampling is not None:
            # Kept, because the structure only points to it.
            self._mask = self.constraint.mask()
            request.sampling.allowed_mask = (
                None if self._mask is None else self._mask.ctypes.data_as(POINTER(c_uint32))
            )
        return request

    def advance_drafts(
        self, count: int, drafts: Sequence[int], step: StepResult
    ) -> Iterator[GenerationPiece]:
        """Take the result of a step; tell the constraint and look for repetitions."""
        for piece in super().advance_drafts(count, drafts, step):
            if self.constraint is not None:
                self.constraint.accept(piece.token)
            repeats = self.repetition is not None and self.repetition.push(piece.token)
            if repeats and not self.finished:
                piece.finish_reason = "repetition"
                piece.text += self.finish("repetition")
            yield piece

    def guess(self) -> tuple[float, list[int]]:
        """Return guesses and their chance: none under a constraint, which has one mask a step."""
        return (0.0, []) if self.constraint is not None else super().guess()


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way through the engine.

    Attributes:
        sequence: The prompt and what has been generated.
        sink: Called with every update, on the engine's thread.
        name: For messages.
        deadline: When to give up, in ``time.monotonic()`` seconds.
        leader: A job with the same prompt to wait for, because its prefix can be reused then.
        prompt_logprobs: How many likeliest tokens to report per prompt token; ``None``: no scoring.
        scores: Log-probabilities of the prompt's tokens but the first, once computed.
        origin: The remembered prefix that the cache shares memory with.
        shared: How many tokens of it.
        cancelled: Whether somebody asked to end it.
        prefilled: Whether the prompt is computed.
        looked_up: Whether files were looked for that hold its beginning.
        load: Done when the file that it waits for has been read.
        created: When it was made, in ``time.monotonic()`` seconds.
        started: When it left the queue.
        first: When its first token came.
        last: When its latest token came.
        arrival: A number that grows from job to job.
    """

    sequence: ConstrainedSequence
    sink: Callable[[Update], object]
    name: str = ""
    deadline: float | None = None
    leader: Job | None = None
    prompt_logprobs: int | None = None
    scores: list[TokenLogprobs] = field(default_factory=list)
    origin: PrefixNode | None = None
    shared: int = 0
    cancelled: bool = False
    prefilled: bool = False
    looked_up: bool = False
    load: Future[Any] | None = None
    created: float = field(default_factory=time.monotonic)
    started: float | None = None
    first: float | None = None
    last: float | None = None
    arrival: int = field(default_factory=lambda: next(_ARRIVALS))

    @property
    def startable(self) -> bool:
        """Whether nothing has to come first: another job's prefix, or one from a file."""
        led = self.leader is None or self.leader.prefilled
        return led and (self.load is None or self.load.done())

    @property
    def scoring(self) -> bool:
        """Whether the prompt's tokens are scored."""
        return self.prompt_logprobs is not None

    def send(self, update: Update) -> None:
        """Tell the sink; one that fails is asked no more."""
        if update.piece is not None:
            self.last = time.monotonic()
            self.first = self.last if self.first is None else self.first
        try:
            self.sink(update)
        except Exception:
            _LOG.exception("the receiver of request %s failed", self.name)
            self.cancelled = True
