"""Prompt lookup: guesses next tokens from what followed the same words before.

Summaries, quotes, code edits and structured text repeat their prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from infinicore_infer.generate.drafts import NO_PROPOSAL, Proposal
from infinicore_infer.generate.sequence import GenerationSequence

# Shortest and longest repetition that is told apart, in tokens.
_MIN_MATCH, _MAX_MATCH = 2, 16
# Earlier places with the same last two tokens that are compared; the nearest ones first.
_MAX_CANDIDATES = 32

# Repetitions are judged in four classes by their length: below 3, 5 and 9 tokens, and longer. To
# begin with, each class counts as having been wrong once and right so often.
_CLASSES = (3, 5, 9)
_PRIOR_RIGHT = (1.0, 1.5, 3.0, 5.0)
# With every new count, the counts so far shrink to this share of themselves.
_MEMORY = 0.95


class RepetitionIndex:
    """Finds where the end of a growing token list occurred before, in constant time per token.

    Places are chained by their last two tokens, as match finders of data compressors do.
    """

    def __init__(self, tokens: list[int]) -> None:
        """Index a list; what is appended to it later is seen by :meth:`find`."""
        self._tokens = tokens
        self._last: dict[tuple[int, int], int] = {}
        self._before: list[int] = []  # the place before with the same two tokens, or -1

    def _update(self) -> None:
        tokens, last, before = self._tokens, self._last, self._before
        for i in range(len(before), len(tokens)):
            # Place 0 has no token before it: -1 is no token id.
            key = (tokens[i - 1] if i else -1, tokens[i])
            before.append(last.get(key, -1))
            last[key] = i

    def find(self) -> tuple[int, int]:
        """Return the index after the longest earlier occurrence and its length; (0, 0): none.

        Of equally long ones it is the latest. Lengths above 16 tokens are not told apart.
        """
        self._update()
        tokens = self._tokens
        end = len(tokens) - 1
        best, longest = 0, 0
        place = self._before[end] if tokens else -1
        for _ in range(_MAX_CANDIDATES):
            if place < 0 or longest == _MAX_MATCH:
                break
            length = _MIN_MATCH
            while (
                length < _MAX_MATCH
                and length <= place
                and tokens[place - length] == tokens[end - length]
            ):
                length += 1
            if length > longest:
                best, longest = place + 1, length
            place = self._before[place]
        return best, longest


class PromptLookup:
    """The guesses of one sequence, and how often they were right.

    Attributes:
        limit: Most guesses to verify in a step.
        guesses: What may come next, at most one more than ``limit``.
    """

    def __init__(self, tokens: list[int], limit: int) -> None:
        """Watch a token list that others append to."""
        self.limit = limit
        self.guesses: list[int] = []
        self._tokens = tokens
        self._index = RepetitionIndex(tokens)
        self._class = 0
        self._right = list(_PRIOR_RIGHT)
        self._wrong = [1.0] * len(_PRIOR_RIGHT)

    def guess(self) -> None:
        """Guess what follows the tokens there are now."""
        start, length = self._index.find()
        # The repetition may reach up to its own beginning: then what it says repeats.
        period = len(self._tokens) - start
        count = self.limit + 1 if length else 0
        self.guesses = [self._tokens[start + i % period] for i in range(count)]
        self._class = sum(length >= bound for bound in _CLASSES)

    @property
    def chance(self) -> float:
        """How likely a guess is right if those before it are."""
        right = self._right[self._class]
        return right / (right + self._wrong[self._class])

    def learn(self, tokens: Sequence[int]) -> None:
        """Compare the guesses, verified or not, with the tokens that came; then forget them."""
        compared = list(zip(self.guesses, tokens, strict=False))
        right = next((i for i, (a, b) in enumerate(compared) if a != b), len(compared))
        for counts, new in ((self._right, right), (self._wrong, int(right < len(compared)))):
            if compared:
                counts[self._class] = counts[self._class] * _MEMORY + new
        self.guesses = []


class LookupSource:
    """A :class:`DraftSource` with a :class:`PromptLookup` for each sequence that asks for it."""

    def __init__(self) -> None:
        self._lookups: dict[GenerationSequence, PromptLookup] = {}

    def propose(self, sequences: Sequence[GenerationSequence], most: int) -> list[Proposal | None]:
        """Return what followed each sequence's end where it occurred before."""
        return [self._propose(sequence, most) for sequence in sequences]

    def _propose(self, sequence: GenerationSequence, most: int) -> Proposal | None:
        if not sequence.lookup:
            return None
        lookup = self._lookups.get(sequence)
        if lookup is None:
            lookup = PromptLookup(sequence.all_tokens, sequence.lookup)
            self._lookups[sequence] = lookup
        lookup.guess()
        tokens = lookup.guesses[: min(most, lookup.limit, sequence.draft_room)]
        return Proposal(tokens, lookup.chance) if tokens else NO_PROPOSAL

    def learn(self, sequence: GenerationSequence, tokens: Sequence[int]) -> None:
        """Compare what was guessed for a sequence, verified or not, with the tokens that came."""
        lookup = self._lookups.get(sequence)
        if lookup is not None:
            lookup.learn(tokens)

    def forget(self, sequence: GenerationSequence) -> None:
        """Drop what is known about a sequence."""
        self._lookups.pop(sequence, None)
