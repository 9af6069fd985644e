"""Prompt lookup: guesses next tokens from what followed the same words before.

Summaries, quotes, code edits and structured text repeat their prompt. One step that verifies
several guesses costs little more than one that decodes a token, because both read all weights once.
The tokens are those of plain decoding whatever is guessed; only the speed depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

# Shortest and longest repetition that is told apart, in tokens.
_MIN_MATCH, _MAX_MATCH = 2, 16
# Earlier places with the same last two tokens that are compared; the nearest ones first.
_MAX_CANDIDATES = 32

# Repetitions are judged in classes: shorter than 3, 5, 9 tokens, and longer. To begin with, guesses
# count as having been right so often for each time they were wrong.
_CLASSES = (3, 5, 9)
_PRIOR_RIGHT = (1.0, 1.5, 3.0, 5.0)
# Share that what has been counted so far keeps with every new count.
_MEMORY = 0.95

# Growth of a step's time per further row, as part of the time of one, until it is measured.
_ROW_COST = 0.2
# Weight of a new measurement, and the number of steps after which an old one counts no more.
_NEW_WEIGHT, _MAX_AGE = 0.4, 256
# Gain in expected speed below which guesses are not worth the risk.
_MIN_GAIN = 1.03


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
    """Guesses of one sequence, and how good they were.

    Attributes:
        limit: Most guesses to verify in a step.
        guesses: What may come next, at most one more than ``limit``.
    """

    def __init__(self, tokens: list[int], limit: int) -> None:
        """Guess how a token list goes on, which others append to."""
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


class StepCosts:
    """How long steps take by their number of rows: measured, and estimated in between."""

    def __init__(self) -> None:
        """Know nothing."""
        self._steps = 0
        self._known: dict[int, tuple[float, int]] = {}  # rows: seconds, number of the step

    def record(self, rows: int, seconds: float) -> None:
        """Take a measurement; one alone does not count fully, it may be an accident."""
        before = self.estimate(rows)
        self._steps += 1
        value = seconds if before is None else before + _NEW_WEIGHT * (seconds - before)
        self._known[rows] = (value, self._steps)

    def estimate(self, rows: int) -> float | None:
        """Return the expected seconds, or ``None`` while nothing is known."""
        fresh = {r: s for r, (s, step) in self._known.items() if self._steps - step < _MAX_AGE}
        if rows in fresh:
            return fresh[rows]
        below = max((r for r in fresh if r < rows), default=None)
        above = min((r for r in fresh if r > rows), default=None)
        if below is not None and above is not None:
            share = (rows - below) / (above - below)
            return fresh[below] + share * (fresh[above] - fresh[below])
        known = below if above is None else above
        if known is None:
            return None
        return fresh[known] * (1 + _ROW_COST * (rows - 1)) / (1 + _ROW_COST * (known - 1))


def draft_lengths(costs: StepCosts, candidates: Sequence[tuple[float, int]]) -> list[int]:
    """Return how many guesses of each sequence to verify for the most tokens per second.

    Args:
        costs: Times of steps; a sequence without guesses takes one row.
        candidates: Chance of a guess to be right, and most guesses, of each sequence.

    Returns:
        A number for each; all zero when plain decoding is expected to be as fast, or while nothing
        is known about times.
    """
    lengths = [0] * len(candidates)
    best = list(lengths)
    expected = float(len(candidates))  # tokens
    seconds = costs.estimate(len(candidates))
    if seconds is None:
        return best
    best_speed = _MIN_GAIN * expected / max(seconds, 1e-9)
    gains = [chance for chance, _ in candidates]
    for rows in range(len(candidates) + 1, len(candidates) + sum(n for _, n in candidates) + 1):
        # The guess that is likeliest to add a token: all those before it must be right as well.
        i = max(
            (i for i, (_, most) in enumerate(candidates) if lengths[i] < most),
            key=lambda i: gains[i],
        )
        lengths[i] += 1
        expected += gains[i]
        gains[i] *= candidates[i][0]
        speed = expected / max(costs.estimate(rows) or 0.0, 1e-9)
        if speed > best_speed:
            best, best_speed = list(lengths), speed
    return best


class Drafter:
    """Decides what to guess in each decoding step of a run.

    Attributes:
        enabled: Whether to guess at all.
    """

    def __init__(self) -> None:
        """Know nothing about the speed of steps yet."""
        self.enabled = True
        self._costs = StepCosts()

    def choose(self, guesses: Sequence[tuple[float, list[int]]]) -> list[list[int]]:
        """Return the guesses to verify of each sequence, given their chances and all of them."""
        if not self.enabled or not any(tokens for _, tokens in guesses):
            return [[] for _ in guesses]
        lengths = draft_lengths(self._costs, [(chance, len(t)) for chance, t in guesses])
        return [tokens[:length] for (_, tokens), length in zip(guesses, lengths, strict=True)]

    def record(self, rows: int, seconds: float) -> None:
        """Learn how long a step of ``rows`` tokens took."""
        self._costs.record(rows, seconds)
