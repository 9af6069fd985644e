"""Token counts and log-probabilities in OpenAI's forms."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from infinicore_infer.engine.jobs import Job
from infinicore_infer.generate.results import TokenLogprobs
from infinicore_infer.server.errors import finite
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


def usage(jobs: Sequence[Job], reasoning_tokens: int | None = None) -> dict[str, Any]:
    """Return the usage object; a prompt with several answers counts once."""
    leaders = [job for job in jobs if job.leader is None]
    prompt = sum(job.sequence.result.prompt_tokens for job in leaders)
    completion = sum(len(job.sequence.result.tokens) for job in jobs)
    result: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(job.sequence.result.reused_tokens for job in leaders)
        },
    }
    if reasoning_tokens is not None:
        result["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
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


def timings(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return how fast answers were computed, in milliseconds, as llama-server tells it.

    The prompt's time ends with the first token, and waiting in the queue is not part of it. Several
    answers count from the first one's begin to the last one's end.
    """
    counts = usage(jobs)
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    prompt, predicted = counts["prompt_tokens"] - cached, counts["completion_tokens"]
    started = min((job.started for job in jobs if job.started is not None), default=0.0)
    first = min((job.first for job in jobs if job.first is not None), default=started)
    last = max((job.last for job in jobs if job.last is not None), default=first)
    result: dict[str, Any] = {"cache_n": cached}
    for name, count, seconds in (
        ("prompt", prompt, first - started),
        ("predicted", predicted, last - first),
    ):
        result[f"{name}_n"] = count
        result[f"{name}_ms"] = round(seconds * 1e3, 3)
        result[f"{name}_per_token_ms"] = round(seconds * 1e3 / count, 3) if count else 0.0
        result[f"{name}_per_second"] = round(count / seconds, 3) if seconds > 0 else 0.0
    return result


def _entry(tokenizer: Qwen3Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token, skip_special=False)
    text = data.decode("utf-8", "replace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(data)}


def chat_logprobs(tokenizer: Qwen3Tokenizer, item: TokenLogprobs) -> dict[str, Any]:
    """Return an entry of a chat choice's ``logprobs.content``."""
    top = [_entry(tokenizer, token, logprob) for token, logprob in item.top]
    return {**_entry(tokenizer, item.token, item.logprob), "top_logprobs": top}


def token_name(tokenizer: Qwen3Tokenizer, token: int) -> str:
    """Return a token's text, or its bytes in OpenAI's notation where it is not text by itself."""
    data = tokenizer.token_bytes(token, skip_special=False)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class LegacyLogprobs:
    """Builds the ``logprobs`` object of text completions."""

    def __init__(self, tokenizer: Qwen3Tokenizer, top: int, offset: int = 0) -> None:
        """Start at a text offset."""
        self._tokenizer = tokenizer
        self._top = top
        self._offset = offset

    def object(
        self, items: Sequence[tuple[int, TokenLogprobs | None]], texts: Sequence[str]
    ) -> dict[str, Any]:
        """Return the object for some tokens.

        Args:
            items: Tokens; the first one of a prompt has no log-probability.
            texts: The text that became complete with each token.
        """
        result: dict[str, Any] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [] if self._top else None,
            "text_offset": [],
        }
        for (token, scores), text in zip(items, texts, strict=True):
            result["tokens"].append(token_name(self._tokenizer, token))
            result["token_logprobs"].append(None if scores is None else finite(scores.logprob))
            result["text_offset"].append(self._offset)
            self._offset += len(text)
            if self._top:
                top = None if scores is None else self._top_of(scores)
                result["top_logprobs"].append(top)
        return result

    def _top_of(self, scores: TokenLogprobs) -> dict[str, float]:
        pairs = [*scores.top, (scores.token, scores.logprob)]
        # The chosen token is always there, and of two with one name the likelier stays.
        result: dict[str, float] = {}
        for token, logprob in pairs:
            result.setdefault(token_name(self._tokenizer, token), finite(logprob))
        return result
