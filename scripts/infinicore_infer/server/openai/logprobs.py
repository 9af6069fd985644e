"""Log-probabilities in OpenAI's form for text completions."""

from __future__ import annotations

from collections.abc import Sequence

from infinicore_infer.generate.results import TokenLogprobs
from infinicore_infer.server.json_values import JsonObject, finite
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


def token_name(tokenizer: Qwen3Tokenizer | None, token: int) -> str:
    """Return a token's text, or its bytes in OpenAI's notation where it is not text by itself.

    Without a tokenizer it is the id, in vLLM's notation.
    """
    if tokenizer is None:
        return f"token_id:{token}"
    data = tokenizer.token_bytes(token, skip_special=False)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class CompletionLogprobs:
    """Builds the ``logprobs`` objects of a text completion; offsets go on from one to the next."""

    def __init__(self, tokenizer: Qwen3Tokenizer | None) -> None:
        """Count offsets from the text's first character.

        Args:
            tokenizer: The model's, if it has one.
        """
        self._tokenizer = tokenizer
        self._offset = 0

    def object(
        self, items: Sequence[tuple[int, TokenLogprobs | None]], texts: Sequence[str]
    ) -> JsonObject:
        """Return the object for the next tokens.

        Args:
            items: Tokens; the first one of a prompt has no log-probability.
            texts: The text that became complete with each token.
        """
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        scores = [item for _, item in items]
        return {
            "tokens": [token_name(self._tokenizer, token) for token, _ in items],
            "token_logprobs": [None if item is None else finite(item.logprob) for item in scores],
            "top_logprobs": [item and self._top_of(item) for item in scores],
            "text_offset": offsets,
        }

    def _top_of(self, scores: TokenLogprobs) -> dict[str, float]:
        pairs = [*scores.top, (scores.token, scores.logprob)]
        # The chosen token is always there, and of two with one name the likelier stays.
        result: dict[str, float] = {}
        for token, logprob in pairs:
            result.setdefault(token_name(self._tokenizer, token), finite(logprob))
        return result
