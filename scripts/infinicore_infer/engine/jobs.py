"""What goes into the engine and comes out of it: submissions, jobs, updates."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from infinicore_infer.engine.prefix_memory import Lineage
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.results import GenerationPiece
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.native.model import KVCache

_LOG = logging.getLogger("infinicore_infer.engine")


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


@dataclass(frozen=True, slots=True)
class Submission:
    """A prompt for an engine, and what its answers shall be like.

    Attributes:
        prompt: Checked token ids; see :meth:`Qwen3ForCausalLM.encode`.
        params: Sampling settings; one answer for each.
        name: For messages.
        timeout: Seconds from the submission after which to give up; ``None``: never.
        prompt_logprobs: Score the prompt and report this many likeliest tokens with each of its
            tokens; ``None``: no scoring.
        stop_tokens: Further tokens that end an answer.
        constraint: Makes the constraint of one answer; ``None``: any token may come.
        repetition: Makes what ends one answer when it repeats itself; ``None``: nothing does.
        priority: What is lower leaves the queue first; of equal ones, what came first.
    """

    prompt: Sequence[int]
    params: Sequence[SamplingParams]
    name: str = ""
    timeout: float | None = None
    prompt_logprobs: int | None = None
    stop_tokens: Sequence[int] = ()
    constraint: Callable[[], Constraint] | None = None
    repetition: Callable[[], RepetitionDetector] | None = None
    priority: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way through the engine.

    Attributes:
        sequence: The prompt and what has been generated.
        sink: Called with every update, on the engine's thread.
        name: For messages.
        deadline: When to give up, in ``time.monotonic()`` seconds.
        priority: What is lower leaves the queue first.
        leader: A job with the same prompt to wait for, because its prefix can be reused then.
        lineage: Whose memory the cache lies in.
        cancelled: Whether somebody asked to end it.
        prefilled: Whether the prompt is computed.
        looked_up: Whether files were looked for that hold its beginning.
        load: Done when the file that it waits for has been read.
        created: When it was made, in ``time.monotonic()`` seconds.
        started: When it left the queue.
        first: When its first token came.
        last: When its latest token came.
    """

    sequence: GenerationSequence
    sink: Callable[[Update], object]
    name: str = ""
    deadline: float | None = None
    priority: int = 0
    leader: Job | None = None
    lineage: Lineage = ()
    cancelled: bool = False
    prefilled: bool = False
    looked_up: bool = False
    load: Future[KVCache | None] | None = None
    created: float = field(default_factory=time.monotonic)
    started: float | None = None
    first: float | None = None
    last: float | None = None

    @property
    def startable(self) -> bool:
        """Whether nothing has to come first: another job's prefix, or one from a file."""
        led = self.leader is None or self.leader.prefilled
        return led and (self.load is None or self.load.done())

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
