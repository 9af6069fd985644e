"""Generates text in the caller's thread: one loop that serves single prompts, streams and lists.

Ctrl-C is heard between steps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence

from libinfinicore_infer import Qwen3Cancelled

from infinicore_infer.generate.batch import Batch, Delivered, SteppedBack
from infinicore_infer.generate.drafts import Drafter
from infinicore_infer.generate.lookup import LookupSource
from infinicore_infer.generate.results import GenerationPiece, GenerationResult
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.native.model import NativeModel


def run_sequences(
    model: NativeModel,
    sequences: Sequence[GenerationSequence],
    *,
    max_batch: int = 16,
    cancel: threading.Event | None = None,
) -> Generator[tuple[int, GenerationPiece], None, None]:
    """Generate all answers together and yield their tokens as they come.

    When KV memory runs out, the youngest sequence gives its cache back and is computed again later;
    its answer stays the same.

    Args:
        model: The model.
        sequences: The prompts.
        max_batch: Most sequences in progress at a time.
        cancel: When set, all answers end with finish_reason "cancelled".

    Yields:
        Index of the sequence and its next piece.

    Raises:
        Qwen3Error: The library failed. Whatever happens, caches of our own are dropped.
    """
    batch = Batch(model, max_batch, Drafter(LookupSource()))
    waiting = deque(sequences)
    index = {sequence: i for i, sequence in enumerate(sequences)}
    budget = max(model.step_tokens, max_batch)
    try:
        while batch.sequences or waiting:
            if cancel is not None and cancel.is_set():
                break
            while waiting and batch.room > 0:
                batch.add(waiting.popleft())
            for outcome in batch.step(budget):
                if isinstance(outcome, Delivered):
                    if outcome.sequence.finished:
                        batch.remove(outcome.sequence)
                    yield index[outcome.sequence], outcome.piece
                elif isinstance(outcome, SteppedBack):
                    waiting.appendleft(outcome.sequence)
    except Qwen3Cancelled:
        pass  # the answers end here, as they would before a step
    finally:
        for sequence in sequences:
            if not sequence.finished:
                sequence.finish("cancelled")
            sequence.release()


class GenerationStream(Iterator[GenerationPiece]):
    """An answer as it is generated; :attr:`result` holds all of it at the end.

    Leaving the stream early is fine: ``close()``, a ``with`` block or garbage collection ends it.
    """

    def __init__(
        self,
        model: NativeModel,
        sequence: GenerationSequence,
        cancel: threading.Event | None = None,
    ) -> None:
        """Wrap a sequence; the first ``next()`` starts the work."""
        self._sequence = sequence
        self._pieces = run_sequences(model, [sequence], max_batch=1, cancel=cancel)

    @property
    def result(self) -> GenerationResult:
        """The answer so far; complete once the stream has ended."""
        return self._sequence.result

    def __next__(self) -> GenerationPiece:
        """Return the next token's piece."""
        return next(self._pieces)[1]

    def close(self) -> None:
        """End the generation and drop its cache."""
        self._pieces.close()

    def __enter__(self) -> GenerationStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
