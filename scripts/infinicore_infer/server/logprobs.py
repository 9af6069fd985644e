"""Log-probabilities of the tokens of an answer, in the form that several protocols share."""

from __future__ import annotations

from infinicore_infer.generate.results import TokenLogprobs
from infinicore_infer.server.json_values import JsonObject, finite
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


def _entry(tokenizer: Qwen3Tokenizer, token: int, logprob: float) -> JsonObject:
    data = tokenizer.token_bytes(token, skip_special=False)
    text = data.decode("utf-8", "replace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(data)}


def chat_logprobs(tokenizer: Qwen3Tokenizer, item: TokenLogprobs) -> JsonObject:
    """Return a token with its text, its bytes, and the likeliest ones in its place."""
    top = [_entry(tokenizer, token, logprob) for token, logprob in item.top]
    return {**_entry(tokenizer, item.token, item.logprob), "top_logprobs": top}
