"""How a client wants answers to be sampled, in fields that belong to no protocol."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.engine.jobs import Submission
from infinicore_infer.errors import FieldError
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How many answers there shall be, how they are sampled, and what ends them.

    Attributes:
        n: How many answers to each prompt.
        max_steps: Most tokens of an answer; ``None``: until the context is full.
        settings: Other arguments of :meth:`Qwen3ForCausalLM.sampling_params`; ``None`` means not
            given. The seed is that of the first answer; the next ones have those that follow.
        logit_bias: What is added to tokens' logits.
        allowed_tokens: The only tokens that may be written; ``None``: all.
        stop_token_ids: Further tokens that end an answer, also where the model's own are ignored.
        priority: What is lower leaves the queue first.
        prompt_logprobs: How many likeliest tokens to report with each of the prompt's; ``None``:
            no log-probabilities of prompts.
        repetition: Makes what ends one answer that repeats itself; ``None``: nothing does.
    """

    n: int = 1
    max_steps: int | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_tokens: Sequence[int] | None = None
    stop_token_ids: Sequence[int] = ()
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
            logit_bias=self.logit_bias or None,
            # A compact form of what may be nearly the whole vocabulary, for each answer.
            allowed_tokens=None if self.allowed_tokens is None else array("I", self.allowed_tokens),
            **self.settings,
        )
        return [first.numbered(i) for i in range(self.n)]

    def submission(
        self,
        tokens: Sequence[int],
        params: Sequence[SamplingParams],
        name: str,
        constraint: Callable[[], Constraint] | None,
    ) -> Submission:
        """Return what the engine is asked for.

        Args:
            tokens: The prompt.
            params: What :meth:`params` returned.
            name: Of the request, in logs.
            constraint: Makes what one answer must have the form of; ``None``: any form.
        """
        return Submission(
            tokens,
            params,
            name,
            stop_tokens=self.stop_token_ids,
            constraint=constraint,
            repetition=self.repetition,
            priority=self.priority,
            prompt_logprobs=self.prompt_logprobs,
        )
