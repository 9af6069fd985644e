"""When to guess the next tokens of answers, and how many; see qwen3_lookup.py."""

from __future__ import annotations

from collections.abc import Sequence

from infinicore_infer.generate.drafts import Drafter
from infinicore_infer.generate.sequence import GenerationSequence

# With more answers in progress, a step is busy enough: guesses would hold up the others' tokens.
MAX_DRAFTING = 4
# Most guesses of a step.
_MAX_GUESSES = 32


class BatchDrafter:
    """Chooses guesses for the steps of an engine, and learns from how long these take."""

    def __init__(self) -> None:
        """Know nothing about the speed of steps yet."""
        self._drafter = Drafter()
        self._watching = False

    def choose(self, plan: Sequence[tuple[GenerationSequence, int]]) -> list[list[int]]:
        """Return what to guess for each part of a step; the lists may be empty."""
        # Parts of prompts make a step long as it is.
        decoding = all(sequence.remaining == 1 for sequence, _ in plan)
        self._watching = decoding and len(plan) <= MAX_DRAFTING
        if not self._watching:
            return [[] for _ in plan]
        most = _MAX_GUESSES // len(plan)
        guesses = [sequence.guess() for sequence, _ in plan]
        return self._drafter.choose([(chance, tokens[:most]) for chance, tokens in guesses])

    def record(self, rows: int, seconds: float) -> None:
        """Learn how long the step took that was chosen for last."""
        if self._watching:
            self._drafter.record(rows, seconds)
