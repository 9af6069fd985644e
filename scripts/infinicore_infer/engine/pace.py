"""How many tokens a step may have, from how long the steps before it took."""

from __future__ import annotations

from collections.abc import Sequence

from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.generate.sequence import GenerationSequence

# Fewest tokens of a step besides one per answer: matrix products need some to be efficient.
_MIN_PREFILL = 16
# Size of the first step, which tells how fast the machine is.
_FIRST_STEP = 128
# What the token of an answer costs, in tokens of prompts: it also needs the head, and reads keys
# and values that no other row of the step shares.
_DECODE_COST = 2
# A step may be so much longer if it thereby ends the only prompt: another short step would cost as
# much as the rest.
_STRETCH = 1.25
# How long a step may take while nobody waits for its end but requests that come meanwhile.
_PROMPT_SECONDS = 0.5


class Pace:
    """Chooses the size of steps, and learns the machine's speed.

    An answer in progress gets one token per step, so steps are as long as the time between tokens
    may be, whatever the number of requests: prompts are computed in the room that answers leave.
    Longer steps would hardly compute more tokens per second, because a step of some dozen tokens
    already costs more arithmetic than reading the weights takes (docs/benchmarks.md has the curve).
    While only prompts are computed, no answer waits for the end of a step, so it may be longer.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._speed = 0.0  # prompt tokens per second

    def budget(self, active: Sequence[GenerationSequence]) -> int:
        """Return how many tokens to compute in the next step."""
        decoding = sum(sequence.remaining == 1 for sequence in active)
        most = max(self._config.step_tokens, decoding + _MIN_PREFILL)
        if not self._speed:
            return min(most, _FIRST_STEP + decoding)
        seconds = self._config.step_seconds
        if not decoding:
            seconds = max(seconds, _PROMPT_SECONDS)
        prefill = int(self._speed * seconds) - _DECODE_COST * decoding
        if len(active) == 1 and prefill < active[0].remaining <= prefill * _STRETCH:
            prefill = active[0].remaining
        return min(most, decoding + max(prefill, _MIN_PREFILL))

    def record(self, parts: int, tokens: int, seconds: float) -> None:
        """Learn how long a step took.

        Args:
            parts: Sequences in the step, most of them with one token each.
            tokens: Tokens of all of them.
            seconds: Its duration.
        """
        if tokens > parts + _MIN_PREFILL:
            speed = (tokens + (_DECODE_COST - 1) * parts) / max(seconds, 1e-9)
            old = self._speed or speed
            self._speed = 0.7 * old + 0.3 * speed
