"""Generates text: one loop that serves single prompts, streams and batches alike.

Each step takes one token of every answer in progress and fills the rest of its budget with parts of
prompts, so a long prompt does not hold up the others, and Ctrl-C is heard between steps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from ctypes import POINTER, c_uint32
from dataclasses import dataclass, field

import numpy as np
from libinfinicore_infer import Qwen3Cancelled, Qwen3OutOfKVError
from numpy.typing import NDArray

from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.drafts import Drafter, PromptLookup
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.sampling import SamplerState, SamplingParams, draw_seed
from infinicore_infer.native.model import KVCache, NativeModel, StepRequest, StepResult
from infinicore_infer.text.streaming import IncrementalDetokenizer, StopMatcher
from infinicore_infer.text.tokenizer import Qwen3Tokenizer

# Tokens per step: large enough for matrix products to run at full speed, small enough for a
# cancelled or shared step to end soon. The library computes at most as many at a time by default.
STEP_TOKENS = 512


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities of one generated token.

    Attributes:
        token: The token.
        logprob: Its natural log-probability under the model, before temperature.
        top: The likeliest tokens with theirs, best first.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


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
        """Return the text."""
        return self.text


class GenerationSequence:
    """One prompt on its way to an answer.

    Attributes:
        all_tokens: The prompt and what has been generated.
        cache: Its KV cache, once started.
        owns_cache: Whether the cache is its own and not the caller's.
        position: How many of the tokens are computed.
        result: The answer so far.
        finished: Whether the answer is complete.
        prompt_logprobs: How many likeliest tokens to report with each of the prompt's; ``None``:
            the prompt is not scored.
        prompt_scores: Log-probabilities of the prompt's tokens but the first, once computed.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        dctx: int,
        dvoc: int,
        end_tokens: Sequence[int],
        tokenizer: Qwen3Tokenizer | None,
        cache: KVCache | None = None,
        constraint: Constraint | None = None,
        repetition: RepetitionDetector | None = None,
        prompt_logprobs: int | None = None,
    ) -> None:
        """Check the prompt against the context.

        Args:
            prompt: Token ids, at least one.
            params: Sampling settings.
            dctx: Context length of the model, in tokens.
            dvoc: Vocabulary size of the model.
            end_tokens: Ids that end the answer.
            tokenizer: For the text; ``None``: the text stays empty.
            cache: A cache to use and leave behind; tokens it shares with the prompt's beginning are
                not computed again. ``None``: one of its own.
            constraint: Decides before each choice which tokens are allowed; ``None``: all are.
            repetition: Ends the answer with finish_reason ``"repetition"`` when it repeats itself.
            prompt_logprobs: Score the prompt's tokens and report this many likeliest ones with
                each; ``None``: no scoring. The whole prompt is computed then.

        Raises:
            ValueError: The prompt is empty or longer than the context.
        """
        if not prompt:
            raise ValueError("the prompt is empty")
        if len(prompt) > dctx:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, the context holds {dctx}: "
                "shorten the prompt or raise max_tokens"
            )
        if params.stop and tokenizer is None:
            raise ValueError("stop strings need a tokenizer.json, which this model folder lacks")
        seed = draw_seed() if params.seed is None else params.seed
        self.all_tokens = list(prompt)
        self.cache = cache
        self.owns_cache = cache is None
        self.position = 0
        self.result = GenerationResult(prompt_tokens=len(prompt), seed=seed)
        if params.logprobs is not None:
            self.result.logprobs = []
        self.finished = False
        self.prompt_logprobs = prompt_logprobs
        self.prompt_scores: list[TokenLogprobs] = []
        self._constraint = constraint
        self._repetition = repetition
        self._mask: NDArray[np.uint32] | None = None
        self._end_tokens = frozenset() if params.ignore_eos else frozenset(end_tokens)
        # The last token generated need not be fed, so it may lie just outside the context.
        room = dctx - len(prompt) + 1
        self._limit = min(room, params.max_steps) if params.max_steps is not None else room
        self._sampler = SamplerState(params, seed, prompt, dvoc)
        self._lookup = PromptLookup(self.all_tokens, params.lookup) if params.lookup else None
        self._detokenizer = IncrementalDetokenizer(tokenizer) if tokenizer else None
        self._stops = StopMatcher(params.stop)
        self._started = self._first = self._last = time.perf_counter()

    @property
    def remaining(self) -> int:
        """How many known tokens are not computed yet."""
        return len(self.all_tokens) - self.position

    @property
    def scoring(self) -> bool:
        """Whether tokens of the prompt are to be scored next."""
        return self.prompt_logprobs is not None and self.remaining > 1

    def start(self, model: NativeModel) -> None:
        """Get a cache, or find what the given one already holds."""
        if self.cache is None:
            self.cache = model.create_kv_cache()
        else:
            # The last token is always computed: its logits are needed.
            held = min(len(self.cache.tokens), len(self.cache), len(self.all_tokens) - 1)
            same = 0
            while same < held and self.cache.tokens[same] == self.all_tokens[same]:
                same += 1
            self.position = self.result.reused_tokens = same

    def release(self) -> None:
        """Drop the cache if it is this sequence's own, and forget progress in it."""
        if self.cache is None:
            return
        if self.owns_cache:
            self.cache.close()
            self.cache = None
            self.position = 0
        elif self.result.accepted_tokens and self.cache and not self.cache.owner.closed:
            # Plain decoding would not have computed right guesses beyond the answer's end.
            if len(self.cache.tokens) > self.position:
                self.cache.truncate(self.position)

    def request(self, count: int, drafts: Sequence[int] = ()) -> StepRequest:
        """Return the request for the next ``count`` known tokens, and guesses after the last."""
        assert self.cache is not None
        tokens = self.all_tokens[self.position : self.position + count]
        sampling = self._sampler.struct() if count == self.remaining else None
        if sampling is not None:
            sampling.ndraft = len(drafts)
            if self._constraint is not None:
                # Kept, because the structure only points to it.
                self._mask = self._constraint.mask()
                sampling.allowed_mask = (
                    None if self._mask is None else self._mask.ctypes.data_as(POINTER(c_uint32))
                )
        return StepRequest(self.cache, [*tokens, *drafts], self.position, sampling)

    def advance(self, count: int, step: StepResult) -> GenerationPiece | None:
        """Take the result of a step; return the new token's piece if one was sampled."""
        return next(self.advance_drafts(count, (), step), None)

    def advance_drafts(
        self, count: int, drafts: Sequence[int], step: StepResult
    ) -> Iterator[GenerationPiece]:
        """Take the result of a step with guesses; yield the piece of each new token as it is taken.

        An answer that ends, or is abandoned, amid right guesses has none of the later ones.
        """
        self.position += count
        if self.remaining:
            return
        tokens = [*drafts[: step.accepted], step.token]
        if self._lookup is not None:
            self._lookup.learn(tokens)
        self.result.drafted_tokens += len(drafts)
        self.result.accepted_tokens += step.accepted
        for i, token in enumerate(tokens):
            # All but the last one, which is to be fed yet, are in the cache.
            self.position += i > 0
            yield self._append(token, step)
            if self.finished:
                break

    def guess(self) -> tuple[float, list[int]]:
        """Return guesses of the next tokens and the chance of each; the list may be empty."""
        # A constraint has one mask for a step, so it goes token by token.
        if self._lookup is None or self._constraint is not None:
            return 0.0, []
        self._lookup.guess()
        # A step brings one token more than its guesses.
        most = min(self._lookup.limit, self._limit - len(self.result.tokens) - 1)
        return self._lookup.chance, self._lookup.guesses[:most]

    def _append(self, token: int, step: StepResult) -> GenerationPiece:
        """Take the next token; return its piece."""
        now = time.perf_counter()
        result = self.result
        if not result.tokens:
            self._first = now
        self._last = now
        result.tokens.append(token)
        self.all_tokens.append(token)
        self._sampler.append(token)
        piece = GenerationPiece("", token)
        if result.logprobs is not None:
            piece.logprobs = TokenLogprobs(token, step.logprob, step.top)
            result.logprobs.append(piece.logprobs)
        if self._constraint is not None:
            self._constraint.accept(token)
        repeats = self._repetition is not None and self._repetition.push(token)
        if token in self._end_tokens:
            piece.finish_reason = "stop"
        elif self._detokenizer is not None:
            piece.text = self._stops.push(self._detokenizer.push(token))
            if self._stops.matched is not None:
                piece.finish_reason = "stop"
        if piece.finish_reason is None and len(result.tokens) >= self._limit:
            piece.finish_reason = "length"
        if piece.finish_reason is None and repeats:
            piece.finish_reason = "repetition"
        result.text += piece.text
        if piece.finish_reason is not None:
            piece.text += self.finish(piece.finish_reason)
        return piece

    def finish(self, reason: str) -> str:
        """Fill in the result; return text that was held back until now."""
        result = self.result
        tail = ""
        if self._detokenizer is not None and self._stops.matched is None:
            tail = self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        result.text += tail
        result.finish_reason = reason
        result.stop_string = self._stops.matched
        self.finished = True
        if result.tokens:
            result.ttft = self._first - self._started
            computed = result.prompt_tokens - result.reused_tokens
            result.prefill_tps = computed / max(result.ttft, 1e-9)
            if len(result.tokens) > 1:
                result.decode_tps = (len(result.tokens) - 1) / max(self._last - self._first, 1e-9)
        return tail


def plan_step(
    active: Sequence[GenerationSequence], budget: int
) -> list[tuple[GenerationSequence, int]]:
    """Return how many tokens of which sequences to compute next, decoding ones first.

    The rest goes to prompts by age; but the one with the least left to compute gets up to half of
    it first, so a short question does not wait for a long document, which takes at most twice as
    long for that.
    """
    plan = [(sequence, 1) for sequence in active if sequence.remaining == 1]
    left = max(budget - len(plan), 0)
    prompts = [sequence for sequence in active if sequence.remaining > 1]
    if not prompts or not left:
        return plan
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
            plan.append((sequence, count))
    return plan


def run_sequences(
    model: NativeModel,
    sequences: Sequence[GenerationSequence],
    *,
    max_batch: int = 16,
    step_tokens: int = STEP_TOKENS,
    cancel: threading.Event | None = None,
) -> Generator[tuple[int, GenerationPiece], None, None]:
    """Generate all answers together and yield their tokens as they come.

    When KV memory runs out, the youngest sequence gives its cache back and is computed again later;
    its answer stays the same.

    Args:
        model: The model.
        sequences: The prompts.
        max_batch: Most sequences in progress at a time.
        step_tokens: Tokens per step.
        cancel: When set, all answers end with finish_reason "cancelled".

    Yields:
        Index of the sequence and its next piece.

    Raises:
        Qwen3Error: The library failed. Whatever happens, caches of our own are dropped.
    """
    waiting = deque(enumerate(sequences))
    active: list[tuple[int, GenerationSequence]] = []
    drafter = Drafter()
    try:
        while active or waiting:
            if cancel is not None and cancel.is_set():
                break
            while waiting and len(active) < max_batch:
                index, sequence = waiting.popleft()
                active.append((index, sequence))
                sequence.start(model)
            plan = plan_step([sequence for _, sequence in active], max(step_tokens, max_batch))
            # Steps with parts of prompts take long as it is, and guesses would make them longer.
            decoding = all(sequence.remaining == 1 for sequence, _ in plan)
            drafts: list[list[int]] = [[] for _ in plan]
            if decoding:
                drafts = drafter.choose([sequence.guess() for sequence, _ in plan])
            begin = time.perf_counter()
            try:
                results = model.step(
                    [
                        sequence.request(count, draft)
                        for (sequence, count), draft in zip(plan, drafts, strict=True)
                    ]
                )
            except Qwen3OutOfKVError:
                if any(drafts):
                    # No memory for guesses; perhaps there is enough without.
                    drafter.enabled = False
                    continue
                if len(active) == 1:
                    raise
                index, sequence = active.pop()
                sequence.release()
                waiting.appendleft((index, sequence))
                # No new sequences until one is done, or the same memory is missing again.
                max_batch = len(active)
                continue
            except Qwen3Cancelled:
                break
            if decoding:
                drafter.record(len(plan) + sum(map(len, drafts)), time.perf_counter() - begin)
            indices = {id(sequence): index for index, sequence in active}
            for (sequence, count), draft, result in zip(plan, drafts, results, strict=True):
                for piece in sequence.advance_drafts(count, draft, result):
                    if sequence.finished:
                        sequence.release()
                        active = [pair for pair in active if pair[1] is not sequence]
                    yield indices[id(sequence)], piece
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
        """Prepare; the first ``next()`` starts the work."""
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
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()
