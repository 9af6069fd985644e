"""Limits of an engine, its statistics, and the errors that end requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
        step_tokens: Most tokens of a step; 0: as many as the model computes at a time.
        step_seconds: How long a step may take while answers are in progress, which is the time
            between their tokens; parts of prompts are cut to fit.
        prompt_seconds: How long a step may take while no answer is in progress, or while two
            prompts or more are, for one in ten tokens of an answer; no less than step_seconds.
        prefix_cache_bytes: KV memory for remembered prefixes; 0: none; ``None``: half of it.
        prefix_dir: Folder for prefixes that many requests share; ``None``: none is kept on disk.
        prefix_disk_bytes: Most bytes of all files in it.
        lookup: Most tokens of an answer to guess per step from repetitions in prompt and answer,
            0 to 64; 0: none. Not where log-probabilities or a constraint are wanted.
    """

    max_batch: int = 16
    max_queue: int = 256
    step_tokens: int = 0
    step_seconds: float = 0.12
    prompt_seconds: float = 0.6
    prefix_cache_bytes: int | None = None
    prefix_dir: Path | None = None
    prefix_disk_bytes: int = 4 << 30
    lookup: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of range.
        """
        for name, low in (("max_batch", 1), ("max_queue", 0), ("step_tokens", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("step_seconds", "prompt_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
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
