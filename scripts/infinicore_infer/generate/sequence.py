"""One prompt on its way to an answer: what to compute next, and what comes of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_uint32

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.results import GenerationPiece, GenerationResult, TokenLogprobs
from infinicore_infer.generate.sampling import SamplerState, SamplingParams, draw_seed
from infinicore_infer.generate.token_rules import TokenRules
from infinicore_infer.native.model import KVCache, NativeModel, StepRequest, StepResult
from infinicore_infer.text.streaming import IncrementalDetokenizer, StopMatcher
from infinicore_infer.text.tokenizer import Qwen3Tokenizer

_ARRIVALS = itertools.count()


class GenerationSequence:
    """One prompt on its way to an answer.

    Attributes:
        params: Sampling settings.
        all_tokens: The prompt and what has been generated.
        cache: Its KV cache, once started.
        owns_cache: Whether the cache is its own and not the caller's.
        position: How many of the tokens are computed.
        arrival: A number that grows from sequence to sequence: the youngest has the highest.
        result: The answer so far.
        finished: Whether the answer is complete.
        limit: Most tokens that the answer may have.
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
        stop_tokens: Sequence[int] = (),
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
            end_tokens: Ids that end the answer, unless they are to be ignored.
            stop_tokens: Ids that end it in any case.
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
        self.params = params
        self.all_tokens = list(prompt)
        self.cache = cache
        self.owns_cache = cache is None
        self.position = 0
        self.arrival = next(_ARRIVALS)
        self.result = GenerationResult(prompt_tokens=len(prompt), seed=seed)
        if params.logprobs is not None:
            self.result.logprobs = []
        self.finished = False
        self.prompt_logprobs = prompt_logprobs
        self.prompt_scores: list[TokenLogprobs] = []
        self._constraint = constraint
        self._repetition = repetition
        self._mask: NDArray[np.uint32] | None = None
        ends = [] if params.ignore_eos else end_tokens
        self._end_tokens = frozenset((*ends, *stop_tokens))
        # The last token generated need not be fed, so it may lie just outside the context.
        room = dctx - len(prompt) + 1
        self.limit = min(room, params.max_steps) if params.max_steps is not None else room
        self._sampler = SamplerState(params, seed, prompt, dvoc)
        self._rules = TokenRules(
            dvoc,
            allowed=params.allowed_tokens,
            bad_words=params.bad_words,
            min_tokens=params.min_tokens,
            end_tokens=[*end_tokens, *stop_tokens],
        )
        self._detokenizer = (
            IncrementalDetokenizer(tokenizer, params.skip_special) if tokenizer else None
        )
        self._stops = StopMatcher(params.stop, include=params.include_stop)
        self._created = self._first = self._last = time.perf_counter()
        self._started = False

    @property
    def remaining(self) -> int:
        """How many known tokens are not computed yet."""
        return len(self.all_tokens) - self.position

    @property
    def scoring(self) -> bool:
        """Whether tokens of the prompt are to be scored next."""
        scored = len(self.prompt_scores) + 1
        return self.prompt_logprobs is not None and scored < self.result.prompt_tokens

    @property
    def lookup(self) -> int:
        """Most tokens to guess in a step from repetitions; 0 under a constraint, or changing rules.

        There is one mask for a step, so their answer goes on token by token.
        """
        single = self._constraint is not None or self._rules.changing(len(self.result.tokens))
        return 0 if single else self.params.lookup

    @property
    def draft_room(self) -> int:
        """Most drafts that a step can use: it brings one token more than them."""
        return self.limit - len(self.result.tokens) - 1

    def start(self, model: NativeModel, cache: KVCache | None = None) -> None:
        """Get a cache, or find what the given one already holds.

        Args:
            model: The model.
            cache: One that may hold the prompt's beginning, which becomes this sequence's own;
                ``None``: the one given to the constructor, or an empty one.
        """
        if self.cache is None:
            self.cache = cache
        if self.cache is None:
            self.cache = model.create_kv_cache()
        else:
            # The last token is always computed: its logits are needed.
            held = min(len(self.cache.tokens), len(self.cache), len(self.all_tokens) - 1)
            same = 0
            while same < held and self.cache.tokens[same] == self.all_tokens[same]:
                same += 1
            self.position = same
        if not self._started:
            self._started = True
            self.result.reused_tokens = self.position

    def release(self) -> None:
        """Close the cache if it is this sequence's own; :meth:`start` then begins from scratch."""
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
        """Return the request for the next ``count`` known tokens, and drafts after the last."""
        assert self.cache is not None
        tokens = self.all_tokens[self.position : self.position + count]
        sampling = self._sampler.struct() if count == self.remaining else None
        if sampling is not None:
            sampling.ndraft = len(drafts)
            inner = None if self._constraint is None else self._constraint.mask()
            # Kept, because the structure only points to it.
            self._mask = self._rules.mask(inner, self.result.tokens)
            sampling.allowed_mask = (
                None if self._mask is None else self._mask.ctypes.data_as(POINTER(c_uint32))
            )
        if drafts:
            tokens += drafts
        return StepRequest(self.cache, tokens, self.position, sampling)

    def advance(
        self, count: int, drafts: Sequence[int], step: StepResult
    ) -> Iterator[GenerationPiece]:
        """Take the result of :meth:`request`'s step; yield the piece of each new token.

        Tokens are taken one by one as pieces are asked for: an answer that ends, or is abandoned,
        amid right drafts has none of the later ones.
        """
        self.position += count
        if self.remaining:
            return
        tokens = [*drafts[: step.accepted], step.token]
        self.result.drafted_tokens += len(drafts)
        self.result.accepted_tokens += step.accepted
        for i, token in enumerate(tokens):
            # All but the last one, which is to be fed yet, are in the cache.
            self.position += i > 0
            yield self._append(token, step)
            if self.finished:
                break

    def advance_scores(self, scores: Sequence[TokenLogprobs]) -> None:
        """Take the log-probabilities of the prompt's next tokens, whose predecessors are computed.

        A sequence that has stepped back gets those again that it has already.
        """
        self.prompt_scores += scores[max(len(self.prompt_scores) - self.position, 0) :]
        self.position += len(scores)

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
        ended = token in self._end_tokens
        if self._detokenizer is not None and (not ended or self.params.include_stop):
            piece.text = self._detokenizer.push(token)
            if len(result.tokens) > self.params.min_tokens:
                piece.text = self._stops.push(piece.text)
        if ended or self._stops.matched is not None:
            piece.finish_reason = "stop"
        if piece.finish_reason is None and len(result.tokens) >= self.limit:
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
            result.ttft = self._first - self._created
            computed = result.prompt_tokens - result.reused_tokens
            result.prefill_tps = computed / max(result.ttft, 1e-9)
            if len(result.tokens) > 1:
                result.decode_tps = (len(result.tokens) - 1) / max(self._last - self._first, 1e-9)
        return tail
