"""Fields of requests that all protocols share, with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, field_validator, model_validator

from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.sampling import Sampling


class Once(FailFast):
    """One complaint is enough of a list of millions."""

    def __hash__(self) -> int:
        """Return anything: unions need it."""
        return 0


Objects = Annotated[list[JsonObject], Once()]
Ids = Annotated[list[int], Once()]
Strings = Annotated[list[str], Once()]
Number = Annotated[float, Field(allow_inf_nan=False)]
_MAX_STOPS = 16
# Each is looked for before every token.
_MAX_BAD_WORDS = 256
_MAX_BAD_WORD = 200


class Body(BaseModel):
    """What all requests share.

    Attributes:
        endpoint: The path that takes it, with ``/v1``; empty: it is part of another body.
        all_names: The names of all fields of all endpoints.
        nested: Fields that are objects of fields, and what these are; see unknown_fields.py.
    """

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    endpoint: ClassVar[str] = ""
    all_names: ClassVar[set[str]] = set()
    nested: ClassVar[Mapping[str, type[Body]]] = {}

    model: str | None = None

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Collect the names of fields."""
        super().__pydantic_init_subclass__(**options)
        if cls.endpoint:
            Body.all_names.update(cls.names())

    def left_out(self) -> list[str]:
        """Return the names of parts that are taken but not obeyed."""
        return []

    @classmethod
    @cache
    def names(cls) -> frozenset[str]:
        """Return the names of the fields, by which clients call them."""
        return frozenset(cls.model_fields)


def checked_stops(stops: list[str]) -> list[str]:
    """Return stop strings without the empty one, which some clients send and which stops nothing.

    Raises:
        ValueError: There are too many.
    """
    if len(stops) > _MAX_STOPS:
        raise ValueError(f"at most {_MAX_STOPS} stop strings")
    return [text for text in stops if text]


class RepetitionDetection(Body):
    """VLLM's repetition_detection: ends answers that repeat a pattern of tokens; 0 is off."""

    max_pattern_size: Annotated[int, Field(ge=0, le=4096)] = 0
    min_pattern_size: Annotated[int, Field(ge=0)] = 0
    min_count: Annotated[int, Field(ge=0, le=2**31)] = 0

    @model_validator(mode="after")
    def _together(self) -> RepetitionDetection:
        if self.min_pattern_size > self.max_pattern_size:
            raise ValueError("min_pattern_size must not be above max_pattern_size")
        if self.max_pattern_size and self.min_count < 2:
            raise ValueError("min_count must be at least 2")
        return self

    def detector(self) -> RepetitionDetector:
        """Return a detector for one answer; ``max_pattern_size`` must not be 0."""
        shortest = max(self.min_pattern_size, 1)
        return RepetitionDetector(self.max_pattern_size, shortest, self.min_count)


class SamplingFields(Body):
    """How answers are sampled; ``None`` means not given."""

    stop: str | Strings | None = None
    # Anthropic's name of it, also TGI's.
    stop_sequences: Strings | None = None
    stop_token_ids: Ids | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    # 0 is greedy.
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None
    # vLLM's.
    min_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    bad_words: Annotated[list[str], Once(), Field(max_length=_MAX_BAD_WORDS)] | None = None
    allowed_token_ids: Annotated[Ids, Field(min_length=1)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    # What is lower comes first.
    priority: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    repetition_detection: RepetitionDetection | None = None

    @field_validator("logit_bias")
    @classmethod
    def _logit_bias(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if bias and not all(token.isascii() and token.isdigit() for token in bias):
            raise ValueError("the keys must be token ids")
        return bias

    @field_validator("stop", "stop_sequences")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> list[str] | None:
        return None if stop is None else checked_stops([stop] if isinstance(stop, str) else stop)

    @field_validator("bad_words")
    @classmethod
    def _bad_words(cls, words: list[str] | None) -> list[str] | None:
        for word in words or ():
            if len(word) > _MAX_BAD_WORD:
                raise ValueError(f"a word has {len(word)} characters; at most {_MAX_BAD_WORD}")
        return words

    def sampling(
        self,
        *,
        max_steps: int | None,
        n: int | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> Sampling:
        """Return the settings.

        Args:
            max_steps: Most tokens of an answer; ``None``: until the context is full.
            n: How many answers there shall be; ``None``: one.
            logprobs: How many likeliest tokens to report; ``None``: no log-probabilities.
            prompt_logprobs: The same of the prompt's tokens.
        """
        repetition = self.repetition_detection
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        settings = {
            "logprobs": logprobs,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            # A client's may be negative.
            "seed": None if self.seed is None else self.seed % 2**64,
            "stop": (*stop, *(self.stop_sequences or ())),
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "bad_words": self.bad_words or None,
            "include_stop": self.include_stop_str_in_output,
            "skip_special": self.skip_special_tokens,
        }
        return Sampling(
            n=n or 1,
            max_steps=max_steps,
            settings=settings,
            logit_bias={int(token): value for token, value in (self.logit_bias or {}).items()},
            allowed_tokens=self.allowed_token_ids,
            stop_token_ids=self.stop_token_ids or (),
            priority=self.priority or 0,
            prompt_logprobs=prompt_logprobs,
            repetition=repetition.detector if repetition and repetition.max_pattern_size else None,
        )
