"""How many tokens a step may have, from how long the steps before it took."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_generate import GenerationSequence

from server.jobs import EngineConfig

# Fewest tokens of a step besides one per answer: matrix products need some to be efficient.
_MIN_PREFILL = 16


class Pace:
    """Chooses the size of steps, and learns the machine's speed."""

    def __init__(self, config: EngineConfig) -> None:
        """Know nothing about the speed yet."""
        self._config = config
        self._tokens_per_second = 0.0

    def budget(self, active: Sequence[GenerationSequence]) -> int:
        """Return how many tokens to compute in the next step."""
        decoding = sum(sequence.remaining == 1 for sequence in active)
        budget = self._config.step_tokens
        if decoding and self._tokens_per_second:
            budget = min(budget, int(self._tokens_per_second * self._config.step_seconds))
        return max(budget, decoding + _MIN_PREFILL)

    def record(self, parts: int, tokens: int, seconds: float) -> None:
        """Learn how long a step with so many tokens of so many sequences took."""
        if tokens > parts + _MIN_PREFILL:
            speed = tokens / max(seconds, 1e-9)
            old = self._tokens_per_second or speed
            self._tokens_per_second = 0.7 * old + 0.3 * speed
