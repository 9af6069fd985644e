"""Log-probabilities of the tokens of an answer, in the form that several protocols share."""

from __future__ import annotations

from collections.abc import Sequence

from infinicore_infer.generate.results import TokenLogprobs
from infinicore_infer.server.json_values import JsonObject, finite
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


def id_name(token: int) -> str:
    """Return a token's id in vLLM's notation."""
    return f"token_id:{token}"


def _entry(tokenizer: Qwen3Tokenizer, token: int, logprob: float, as_id: bool) -> JsonObject:
    data = tokenizer.token_bytes(token, skip_special=False)
    text = id_name(token) if as_id else data.decode("utf-8", "replace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(data)}


def chat_logprobs(
    tokenizer: Qwen3Tokenizer, item: TokenLogprobs, *, as_ids: bool = False
) -> JsonObject:
    """Return a token with its text, its bytes, and the likeliest ones in its place.

    Args:
        tokenizer: The model's.
        item: The token.
        as_ids: Whether tokens are named by their ids.
    """
    top = [_entry(tokenizer, token, logprob, as_ids) for token, logprob in item.top]
    return {**_entry(tokenizer, item.token, item.logprob, as_ids), "top_logprobs": top}


def prompt_logprobs(
    tokenizer: Qwen3Tokenizer | None, scores: Sequence[TokenLogprobs], top: int
) -> list[JsonObject | None]:
    """Return vLLM's ``prompt_logprobs``: of each token of a prompt but the first, by id.

    Args:
        tokenizer: The model's, if it has one.
        scores: Of the tokens of the prompt after the first.
        top: How many likeliest tokens to show besides.
    """

    def entry(token: int, logprob: float, rank: int | None) -> JsonObject:
        data = b"" if tokenizer is None else tokenizer.token_bytes(token, skip_special=False)
        text = data.decode("utf-8", "replace")
        return {"logprob": finite(logprob), "rank": rank, "decoded_token": text}

    result: list[JsonObject | None] = [None]
    for score in scores:
        entries = {str(score.token): entry(score.token, score.logprob, score.rank)}
        for i, (token, logprob) in enumerate(score.top[:top]):
            entries.setdefault(str(token), entry(token, logprob, i + 1))
        result.append(dict(entries))
    return result
