"""What to compute in a step: which sequences, and how many tokens of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infinicore_infer.generate.sequence import GenerationSequence


@dataclass(slots=True)
class Share:
    """One sequence's share of a step.

    Attributes:
        sequence: The sequence.
        count: How many of its known tokens to compute.
        drafts: Guesses of the tokens after them, to be verified.
    """

    sequence: GenerationSequence
    count: int
    drafts: Sequence[int] = ()


def plan_step(sequences: Sequence[GenerationSequence], budget: int) -> list[Share]:
    """Return how many tokens of which sequences to compute next, decoding ones first.

    The rest of the budget goes to prompts in the order given; but the one with the least left to
    compute gets up to half of it first, so a short question does not wait for a long document,
    which takes at most twice as long for that.

    Args:
        sequences: Those in progress.
        budget: Most tokens of the step; decoding sequences get theirs in any case.
    """
    shares = [Share(sequence, 1) for sequence in sequences if sequence.remaining == 1]
    left = budget - len(shares)
    if len(shares) == len(sequences) or left <= 0:
        return shares
    prompts = [sequence for sequence in sequences if sequence.remaining > 1]
    shortest = min(prompts, key=lambda sequence: sequence.remaining)
    reserved = min(shortest.remaining, (left + 1) // 2)
    left -= reserved
    for sequence in prompts:
        most = sequence.remaining - (reserved if sequence is shortest else 0)
        count = min(most, left)
        left -= count
        if sequence is shortest:
            count += reserved
        if count:
            shares.append(Share(sequence, count))
    return shares
