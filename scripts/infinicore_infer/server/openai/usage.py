"""Token counts in OpenAI's form."""

from __future__ import annotations

from infinicore_infer.server.counts import Counts
from infinicore_infer.server.json_values import JsonObject


def usage(counts: Counts, reasoning_tokens: int | None = None) -> JsonObject:
    """Return the usage object of chat and text completions.

    Args:
        counts: Tokens of prompts and answers.
        reasoning_tokens: How many of the answers' tokens are thinking; ``None``: it is not told.
    """
    result: JsonObject = {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
    }
    if reasoning_tokens is not None:
        result["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return result


def response_usage(counts: Counts, reasoning_tokens: int) -> JsonObject:
    """Return the usage object of responses."""
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": counts.prompt + counts.completion,
    }
