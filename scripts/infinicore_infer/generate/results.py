"""What a generation brings: tokens one by one, and the whole answer."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities of one generated token.

    Attributes:
        token: The token.
        logprob: Its natural log-probability under the model, before temperature.
        top: The likeliest tokens with theirs, best first.
        rank: How many tokens are at least as likely; of tokens of prompts, else ``None``.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]
    rank: int | None = None


@dataclass(slots=True)
class GenerationPiece:
    """One generated token of a stream.

    Attributes:
        text: Text that became complete with it; may be empty.
        token: Its id.
        finish_reason: Set on the last piece; see :class:`GenerationResult`.
        logprobs: Set if they were asked for.
    """

    text: str
    token: int
    finish_reason: str | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(slots=True)
class GenerationResult:
    """An answer. ``str(result)`` is its text.

    Attributes:
        text: The answer without control tokens and without the stop string.
        tokens: All generated ids, the end token included.
        prompt_tokens: Length of the prompt in tokens.
        reused_tokens: How many of them were in the cache already.
        finish_reason: ``"stop"`` (end token or stop string), ``"length"`` (limit or full context),
            ``"repetition"`` (where a detector of repetitions was given) or ``"cancelled"``.
        stop_string: The stop string that ended it, if one did.
        seed: The seed of its random draws.
        ttft: Seconds from the start to the first token.
        prefill_tps: Prompt tokens computed per second.
        decode_tps: Tokens per second after the first one; 0 if there was none.
        drafted_tokens: How many tokens were guessed by lookup and verified.
        accepted_tokens: How many of them were right.
        logprobs: Per token, if asked for.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    finish_reason: str = "cancelled"
    stop_string: str | None = None
    seed: int = 0
    ttft: float = 0.0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    logprobs: list[TokenLogprobs] | None = None

    def __str__(self) -> str:
        return self.text
