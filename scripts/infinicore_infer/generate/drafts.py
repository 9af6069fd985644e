"""Drafts: guesses of next tokens that a step verifies, and how many of them pay.

One step that verifies several guesses costs little more than one that decodes a token, because both
read all weights once. The tokens are those of plain decoding whatever is guessed; only the speed
depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from infinicore_infer.generate.plan import Share
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.native.model import StepResult

# Growth of a step's time per further row, as part of the time of one, until it is measured.
_ROW_COST = 0.2
# Weight of a new measurement, and the number of steps after which an old one counts no more.
_NEW_WEIGHT, _MAX_AGE = 0.4, 256
# Gain in expected speed below which guesses are not worth the risk.
_MIN_GAIN = 1.03
# More than any step can verify.
_UNLIMITED = 1 << 30


@dataclass(slots=True)
class Proposal:
    """What a source guesses for one sequence.

    Attributes:
        tokens: What may come next; may be empty.
        chance: How likely a token is right if those before it are.
    """

    tokens: Sequence[int]
    chance: float


NO_PROPOSAL = Proposal((), 0.0)


class DraftSource(Protocol):
    """Guesses how sequences go on: from repetitions in them, or with a small model, say.

    One source serves all sequences of a batch, so that it can compute them together.
    """

    def propose(
        self, sequences: Sequence[GenerationSequence], most: int
    ) -> Sequence[Proposal | None]:
        """Return a proposal of at most ``most`` tokens for each sequence.

        ``None`` says that nothing is to be guessed for a sequence, now or later. Each sequence has
        one known token that is not computed yet. No proposal may be longer than the sequence's
        ``draft_room``.
        """

    def learn(self, sequence: GenerationSequence, tokens: Sequence[int]) -> None:
        """Take the tokens that came where the latest proposal guessed.

        This happens after every step with proposals, also if none of their tokens was verified.
        """

    def forget(self, sequence: GenerationSequence) -> None:
        """Drop what is kept for a sequence that leaves the batch; it may come back."""


class StepCosts:
    """How long steps take by their number of rows: measured, and estimated in between."""

    def __init__(self) -> None:
        self._steps = 0
        self._known: dict[int, tuple[float, int]] = {}  # rows: seconds, number of the step

    def record(self, rows: int, seconds: float) -> None:
        """Take a measurement. A single one may be an accident, so it does not count fully."""
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
    """Decides what to guess in each step of a batch, and learns from how long steps take."""

    def __init__(
        self,
        source: DraftSource,
        *,
        max_sequences: int | None = None,
        max_drafts: int | None = None,
    ) -> None:
        """Set the policy.

        Args:
            source: Where guesses come from.
            max_sequences: With more sequences in a step, nothing is guessed; ``None``: no limit.
            max_drafts: Most guesses of a step, split evenly; ``None``: no limit.
        """
        self._source = source
        self._max_sequences = _UNLIMITED if max_sequences is None else max_sequences
        self._max_drafts = _UNLIMITED if max_drafts is None else max_drafts
        self._costs = StepCosts()
        self._watching = False

    def choose(self, shares: Sequence[Share]) -> None:
        """Set the drafts of a step's shares; they may stay empty."""
        self._watching = False
        if len(shares) > self._max_sequences:
            return
        # Parts of prompts make a step long as it is, and drafts would make it longer.
        sequences = [share.sequence for share in shares]
        if not all(sequence.remaining == 1 for sequence in sequences):
            return
        proposals = self._source.propose(sequences, self._max_drafts // len(sequences))
        self._watching = any(proposal is not None for proposal in proposals)
        if not self._watching:
            return
        known = [proposal or NO_PROPOSAL for proposal in proposals]
        lengths = [0] * len(known)
        if any(proposal.tokens for proposal in known):
            candidates = [(proposal.chance, len(proposal.tokens)) for proposal in known]
            lengths = draft_lengths(self._costs, candidates)
        for share, proposal, length in zip(shares, known, lengths, strict=True):
            share.drafts = proposal.tokens[:length]

    def record(self, rows: int, seconds: float) -> None:
        """Learn how long the step took that was chosen for last.

        Args:
            rows: Its tokens and drafts.
            seconds: Its duration.
        """
        if self._watching:
            self._costs.record(rows, seconds)

    def learn(self, share: Share, result: StepResult) -> None:
        """Tell the source which tokens came of a share that was chosen for last."""
        if self._watching:
            tokens = [*share.drafts[: result.accepted], result.token]
            self._source.learn(share.sequence, tokens)

    def forget(self, sequence: GenerationSequence) -> None:
        """Drop what is kept for a sequence that leaves."""
        self._source.forget(sequence)
