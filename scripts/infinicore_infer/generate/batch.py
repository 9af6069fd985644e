"""The loop of a step, for one prompt, many prompts and the engine alike.

Each step takes one token of every answer in progress and fills the rest of its budget with parts of
prompts, so a long prompt does not hold up the others. A step of answers alone may verify drafts.
When KV memory runs out, the step is tried without drafts; then the owner of the batch is asked to
give memory back; then the youngest sequence steps back: it gives up its cache, and is computed
again later with the same answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from libinfinicore_infer import Qwen3OutOfKVError

from infinicore_infer.generate.drafts import Drafter
from infinicore_infer.generate.plan import Share, plan_step
from infinicore_infer.generate.results import GenerationPiece
from infinicore_infer.generate.score import score_prompt
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.native.model import KVCache, NativeModel, StepResult


@dataclass(slots=True)
class Computed:
    """A step was computed. The pieces that it brought come next.

    Attributes:
        shares: How many sequences took part.
        tokens: How many known tokens were computed.
        drafted: How many drafts were verified besides.
        accepted: How many of them were right.
        seconds: Its duration.
    """

    shares: int
    tokens: int
    drafted: int
    accepted: int
    seconds: float


@dataclass(slots=True)
class Delivered:
    """A sequence has a new token. If it has finished, the receiver removes it from the batch."""

    sequence: GenerationSequence
    piece: GenerationPiece


@dataclass(slots=True)
class SteppedBack:
    """A sequence has left the batch for want of KV memory; the receiver adds it again later."""

    sequence: GenerationSequence


@dataclass(slots=True)
class StepFailed:
    """A call of the library failed. If it was for several sequences, each is computed alone next.

    Attributes:
        sequences: Those it was for; a single one is the culprit, and the receiver removes it.
        error: Why it failed.
    """

    sequences: Sequence[GenerationSequence]
    error: Exception


@dataclass(slots=True)
class Failed:
    """A sequence failed outside of the library's calls; the receiver removes it from the batch."""

    sequence: GenerationSequence
    error: Exception


Outcome = Computed | Delivered | SteppedBack | StepFailed | Failed


class Batch:
    """Sequences that are computed together, one step after the other.

    It belongs to one thread.

    Attributes:
        sequences: Those in progress, in the order in which they were added.
    """

    def __init__(
        self,
        model: NativeModel,
        size: int,
        drafter: Drafter,
        *,
        reclaim: Callable[[], bool] = lambda: False,
        isolate: bool = False,
    ) -> None:
        """Make an empty batch.

        Args:
            model: Computes the steps.
            size: Most sequences in progress.
            drafter: Chooses drafts.
            reclaim: Called when KV memory is missing; frees some that no sequence needs and returns
                whether it did.
            isolate: Whether a step that fails is computed again sequence by sequence, and failures
                are outcomes; otherwise they are raised.
        """
        self.sequences: list[GenerationSequence] = []
        self._model = model
        self._size = self._limit = size
        self._drafter = drafter
        self._reclaim = reclaim
        self._isolate = isolate

    @property
    def room(self) -> int:
        """How many sequences may be added now.

        Once a sequence has stepped back, no more than those left over are in progress at a time,
        because the same memory would soon be missing again; see :meth:`lift_limit`.
        """
        return self._limit - len(self.sequences)

    def lift_limit(self) -> None:
        """Allow as many sequences as in the beginning, because nobody waits to be added."""
        self._limit = self._size

    def add(self, sequence: GenerationSequence, cache: KVCache | None = None) -> None:
        """Start a sequence; see :meth:`GenerationSequence.start`.

        Raises:
            MemoryError: There is no memory for a cache.
            ValueError: The model or the sequence's cache is closed.
        """
        sequence.start(self._model, cache)
        self.sequences.append(sequence)

    def remove(self, sequence: GenerationSequence) -> None:
        """Take a sequence out, finished or not, and release what it holds; safe to call twice."""
        if sequence in self.sequences:
            self.sequences.remove(sequence)
            self._drafter.forget(sequence)
        sequence.release()

    @property
    def ready(self) -> list[GenerationSequence]:
        """The sequences that take part in the next step: all but those whose prompt is scored."""
        return [sequence for sequence in self.sequences if not sequence.scoring]

    def plan(self, budget: int) -> list[Share]:
        """Return what the next step is to compute; see :func:`plan_step`."""
        return plan_step(self.ready, budget)

    def step(self, budget: int) -> Iterator[Outcome]:
        """Compute a step and a part of a prompt that is scored; yield what comes of it.

        A step that had to free memory brings nothing; the next one does its work. Sequences take
        their tokens as the iterator goes on: tokens that are not asked for do not come again.

        Args:
            budget: Most tokens of the step, as :func:`plan_step` takes it.

        Raises:
            Exception: What the library or a sequence raised, unless failures are isolated.
        """
        for sequence in self.sequences:
            if sequence.scoring:
                yield from self._score(sequence)
                break
        shares = self.plan(budget)
        if shares:
            yield from self._compute(shares)

    def _score(self, sequence: GenerationSequence) -> Iterator[Outcome]:
        """Compute a part of a prompt that is scored: it needs the logits of all its tokens."""
        try:
            score_prompt(self._model, sequence)
        except Qwen3OutOfKVError as error:
            yield from self._make_room(error)
        except Exception as error:
            if not self._isolate:
                raise
            yield StepFailed((sequence,), error)

    def _compute(self, shares: Sequence[Share]) -> Iterator[Outcome]:
        """Choose drafts, run the library, and hand out what it brought."""
        self._drafter.choose(shares)
        begin = time.perf_counter()
        try:
            results = self._run(shares)
        except Qwen3OutOfKVError as error:
            yield from self._make_room(error)
            return
        except Exception as error:
            if not self._isolate:
                raise
            yield StepFailed([share.sequence for share in shares], error)
            if len(shares) > 1:
                yield from self._compute_alone(shares)
            return
        seconds = time.perf_counter() - begin
        tokens = drafted = accepted = 0
        for share, result in zip(shares, results, strict=True):
            tokens += share.count
            drafted += len(share.drafts)
            accepted += result.accepted
        self._drafter.record(len(shares) + drafted, seconds)
        yield Computed(len(shares), tokens, drafted, accepted, seconds)
        for share, result in zip(shares, results, strict=True):
            sequence = share.sequence
            self._drafter.learn(share, result)
            try:
                for piece in sequence.advance(share.count, share.drafts, result):
                    yield Delivered(sequence, piece)
            except Exception as error:
                if not self._isolate:
                    raise
                yield Failed(sequence, error)

    def _run(self, shares: Sequence[Share]) -> list[StepResult]:
        """Run the library; empty the drafts if there is memory only without them."""
        try:
            return self._model.step(
                [share.sequence.request(share.count, share.drafts) for share in shares]
            )
        except Qwen3OutOfKVError:
            if not any(share.drafts for share in shares):
                raise
            for share in shares:
                share.drafts = ()
            return self._run(shares)

    def _compute_alone(self, shares: Sequence[Share]) -> Iterator[Outcome]:
        """Compute the shares of a failed step one by one, so that only the culprits fail."""
        for share in shares:
            # An earlier one may have made this one step back.
            if share.sequence in self.sequences:
                yield from self._compute([share])

    def _make_room(self, error: Exception) -> Iterator[Outcome]:
        """Free KV memory for the next step, which computes what this one could not."""
        if self._reclaim():
            return
        youngest = max(self.sequences, key=lambda sequence: sequence.arrival)
        if len(self.sequences) == 1:
            if not self._isolate:
                raise error
            yield Failed(youngest, error)
            return
        self.remove(youngest)
        self._limit = len(self.sequences)
        yield SteppedBack(youngest)
