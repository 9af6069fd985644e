"""How a client wants answers to be sampled, in fields that belong to no protocol."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.errors import FieldError
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How many answers there shall be, how they are sampled, and what ends them.

    Attributes:
        n: How many answers to each prompt.
        max_steps: Most tokens of an answer; ``None``: until the context is full.
        logprobs: How many likeliest tokens to report; ``None``: no log-probabilities.
        seed: Of the first answer; the next ones have the numbers that follow.
        stop_token_ids: Further tokens that end an answer, also where the model's own are ignored.
        bad_words: What must not be written.
        priority: What is lower leaves the queue first.
        prompt_logprobs: How many likeliest tokens to report with each of the prompt's; ``None``:
            no log-probabilities of prompts.
        repetition: Makes what ends one answer that repeats itself; ``None``: nothing does.

    The others are those of :class:`SamplingParams`; ``None`` means not given.
    """

    n: int = 1
    max_steps: int | None = None
    logprobs: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    bad_words: Sequence[str] = ()
    allowed_tokens: Sequence[int] | None = None
    include_stop: bool | None = None
    skip_special: bool | None = None
    priority: int = 0
    prompt_logprobs: int | None = None
    repetition: Callable[[], RepetitionDetector] | None = None

    def params(self, model: Qwen3ForCausalLM) -> list[SamplingParams]:
        """Return the settings of every answer, the checkpoint's where the client gives none.

        Raises:
            FieldError: A value is out of range, or a token is not in the vocabulary.
        """
        dvoc = model.meta.dvoc
        for token in self.logit_bias:
            if token >= dvoc:
                raise FieldError("logit_bias", f"there is no token {token}")
        for i, token in enumerate(self.stop_token_ids):
            if not 0 <= token < dvoc:
                raise FieldError(f"stop_token_ids[{i}]", f"there is no token {token}")
        for i, token in enumerate(self.allowed_tokens or ()):
            if not 0 <= token < dvoc:
                raise FieldError(f"allowed_token_ids[{i}]", f"there is no token {token}")
        first = model.sampling_params(
            max_steps=self.max_steps,
            logprobs=self.logprobs,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            # A client's may be negative.
            seed=None if self.seed is None else self.seed % 2**64,
            logit_bias=self.logit_bias or None,
            stop=tuple(self.stop),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            bad_words=self.bad_words or None,
            # A compact form of what may be nearly the whole vocabulary, for each answer.
            allowed_tokens=None if self.allowed_tokens is None else array("I", self.allowed_tokens),
            include_stop=self.include_stop,
            skip_special=self.skip_special,
        )
        return [first.numbered(i) for i in range(self.n)]
