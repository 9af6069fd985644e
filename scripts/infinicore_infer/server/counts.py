"""What answers cost: tokens and time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from infinicore_infer.engine.jobs import Job
from infinicore_infer.server.json_values import JsonObject


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens.

    Attributes:
        prompt: Of prompts, each counted once however many answers it has.
        cached: How many of these were in the prefix cache.
        completion: Of answers.
    """

    prompt: int
    cached: int
    completion: int


def count(jobs: Sequence[Job]) -> Counts:
    """Count the tokens of answers; of those in progress, what there is so far."""
    leaders = [job.sequence.result for job in jobs if job.leader is None]
    return Counts(
        sum(result.prompt_tokens for result in leaders),
        sum(result.reused_tokens for result in leaders),
        sum(len(job.sequence.result.tokens) for job in jobs),
    )


@dataclass(frozen=True, slots=True)
class Spans:
    """Seconds that answers took.

    Attributes:
        queue: Until the first one began.
        prompt: From there to the first token.
        answer: From there to the last token.
    """

    queue: float
    prompt: float
    answer: float


def spans(jobs: Sequence[Job]) -> Spans:
    """Return how long answers took; several count from the first one's begin to the last's end."""
    created = min(job.created for job in jobs)
    started = min((job.started for job in jobs if job.started is not None), default=created)
    first = min((job.first for job in jobs if job.first is not None), default=started)
    last = max((job.last for job in jobs if job.last is not None), default=first)
    return Spans(started - created, first - started, last - first)


def running(job: Job, tokens: int) -> Counts:
    """Count the tokens of one answer and its prompt so far.

    Args:
        job: The answer.
        tokens: How many of its tokens have been shown; there may be more by now.
    """
    result = job.sequence.result
    return Counts(result.prompt_tokens, result.reused_tokens, tokens)


def timings(jobs: Sequence[Job]) -> JsonObject:
    """Return how fast answers were computed, in milliseconds, as llama-server tells it.

    The prompt's time ends with the first token, and waiting in the queue is not part of it.
    """
    counts, took = count(jobs), spans(jobs)
    result: JsonObject = {"cache_n": counts.cached}
    for name, tokens, seconds in (
        ("prompt", counts.prompt - counts.cached, took.prompt),
        ("predicted", counts.completion, took.answer),
    ):
        result[f"{name}_n"] = tokens
        result[f"{name}_ms"] = round(seconds * 1e3, 3)
        result[f"{name}_per_token_ms"] = round(seconds * 1e3 / tokens, 3) if tokens else 0.0
        result[f"{name}_per_second"] = round(tokens / seconds, 3) if seconds > 0 else 0.0
    return result


def stop_reason(job: Job, end_tokens: Collection[int]) -> str | int | None:
    """Return what ended an answer, as vLLM tells it: a stop string, the id of a stop token, ...

    Args:
        job: The answer.
        end_tokens: The model's own, which are no reason.
    """
    result = job.sequence.result
    if result.finish_reason == "repetition":
        return "repetition_detected"
    if result.finish_reason != "stop" or result.stop_string is not None:
        return result.stop_string
    return None if result.tokens[-1] in end_tokens else result.tokens[-1]
