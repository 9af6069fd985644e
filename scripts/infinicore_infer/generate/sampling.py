"""How answers are sampled and when they end: settings, their defaults, and per-request state."""

from __future__ import annotations

import ctypes
import math
import os
from array import array
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_float, c_uint32
from dataclasses import dataclass, field, replace
from typing import Any

from libinfinicore_infer import Qwen3SamplingParams

from infinicore_infer.errors import FieldError
from infinicore_infer.native.model import sampling_struct

# Defaults that generation_config.json may set, by our name and theirs.
_CONFIG_KEYS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_steps": "max_new_tokens",
}


def draw_seed() -> int:
    """Return a random seed; 48 bits, so that every JSON reader keeps all of them."""
    return int.from_bytes(os.urandom(6), "little")


def _single(value: float) -> float:
    """Return what the library will see of a number: a 32-bit float."""
    return c_float(value).value


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FieldError(name, f"must be a finite number, got {value!r}", joint=" ")
    single = _single(value)
    if value > high or value < low or (open_low and single == low) or not math.isfinite(single):
        bound = f"above {low}" if open_low else f"at least {low}"
        upper = "" if high == math.inf else f" and at most {high}"
        raise FieldError(name, f"must be {bound}{upper}, got {value}", joint=" ")


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Check a whole number.

    Raises:
        ValueError: It is none, or out of range; the message says what it may be.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        problem = f"must be a whole number from {low} to {high}, got {value!r}"
        raise FieldError(name, problem, joint=" ")


@dataclass(slots=True)
class SamplingParams:
    """Settings of one generation.

    Attributes:
        temperature: 0 is greedy.
        top_k: Keep the k likeliest tokens; 0: all; 1: greedy.
        top_p: Keep the likeliest tokens whose probabilities reach this; in (0, 1].
        min_p: Drop tokens below this times the likeliest; in [0, 1).
        repetition_penalty: Above 0; 1 is off; over prompt and answer.
        presence_penalty: In [-2, 2]; over the answer.
        frequency_penalty: In [-2, 2]; over the answer.
        seed: Same seed, prompt and settings: same answer; ``None``: a random one.
        logit_bias: Added to logits by token id; ``-inf`` bans a token.
        allowed_tokens: The only tokens that may be chosen; ``None``: all.
        logprobs: How many likeliest tokens to report per step, 0 to 128; ``None``: none, and no
            log-probabilities either.
        max_steps: Most tokens to generate; ``None``: until the context is full.
        stop: Strings that end the answer; they are not part of it.
        ignore_eos: Go on after end tokens.
        lookup: Most tokens to guess per step from repetitions in prompt and answer, 0 to 64; 0:
            none. Changes the speed, never the tokens. Not together with logprobs.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_tokens: Sequence[int] | None = None
    logprobs: int | None = None
    max_steps: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    lookup: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: A value is out of range; the message names it and the range.
        """
        _number("temperature", self.temperature, 0, math.inf)
        check_whole("top_k", self.top_k, 0, 2**32 - 1)
        _number("top_p", self.top_p, 0, 1, open_low=True)
        _number("min_p", self.min_p, 0, 1)
        if _single(self.min_p) >= 1:
            raise FieldError("min_p", f"must be below 1, got {self.min_p}", joint=" ")
        _number("repetition_penalty", self.repetition_penalty, 0, math.inf, open_low=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, 128)
        check_whole("lookup", self.lookup, 0, 64)
        if self.lookup and self.logprobs is not None:
            raise ValueError("lookup reports no log-probabilities: leave out lookup or logprobs")
        if self.max_steps is not None:
            check_whole("max_steps", self.max_steps, 1, 2**32 - 1)
        if isinstance(self.stop, str):
            self.stop = (self.stop,)
        if any(not isinstance(stop, str) or not stop for stop in self.stop):
            raise FieldError("stop", "must be strings of at least one character", joint=" ")
        for token, bias in self.logit_bias.items():
            # -inf bans a token; NaN and +inf mean nothing.
            if not isinstance(token, int) or math.isnan(bias) or bias == math.inf:
                raise FieldError("logit_bias", f"of token {token!r} is {bias!r}", joint=" ")

    @classmethod
    def from_config(cls, generation_config: Mapping[str, Any], **overrides: Any) -> SamplingParams:
        """Return the checkpoint's recommended settings with the caller's on top.

        Args:
            generation_config: Contents of generation_config.json. Without ``do_sample: true`` the
                default is greedy; asking for top_k, top_p or min_p then turns sampling on.
            **overrides: Fields by name; ``None`` means not given.

        Raises:
            ValueError: A value is out of range.
            TypeError: There is no such field.
        """
        given = {key: value for key, value in overrides.items() if value is not None}
        values: dict[str, Any] = {
            ours: generation_config[theirs]
            for ours, theirs in _CONFIG_KEYS.items()
            if generation_config.get(theirs) is not None
        }
        sampled = bool(generation_config.get("do_sample"))
        asked = any(key in given for key in ("top_k", "top_p", "min_p"))
        if sampled or asked:
            values.setdefault("temperature", 1.0)
        else:
            values["temperature"] = 0.0
        return cls(**{**values, **given})

    def numbered(self, i: int) -> SamplingParams:
        """Return the settings of answer i of several: its seed is ``seed + i``, if there is one."""
        seed = None if self.seed is None else (self.seed + i) % 2**64
        return replace(self, seed=seed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_k == 1


class SamplerState:
    """One request's sampling struct and the arrays that it points to."""

    def __init__(self, params: SamplingParams, seed: int, prompt: Sequence[int], dvoc: int) -> None:
        """Fill the struct, and keep the arrays that it points to.

        Raises:
            ValueError: A biased or allowed token is not in the vocabulary.
        """
        for token in [*params.logit_bias, *(params.allowed_tokens or ())]:
            if not 0 <= token < dvoc:
                raise ValueError(f"token {token}: ids of this model are from 0 to {dvoc - 1}")
        self._penalised = (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )
        self._history = array("I", prompt if self._penalised else ())
        self._generated = 0
        self._struct = sampling_struct(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            seed=seed,
            top_logprobs=params.logprobs or 0,
            no_logprob=int(params.logprobs is None),
        )
        if params.logit_bias:
            n = len(params.logit_bias)
            self._struct.bias_tokens = (c_uint32 * n)(*params.logit_bias.keys())
            self._struct.bias_values = (c_float * n)(*params.logit_bias.values())
            self._struct.nbias = n
        if params.allowed_tokens is not None:
            mask = (c_uint32 * ((dvoc + 31) // 32))()
            for token in params.allowed_tokens:
                mask[token // 32] |= 1 << (token % 32)
            self._struct.allowed_mask = mask

    def append(self, token: int) -> None:
        """Record a generated token."""
        if self._penalised:
            self._history.append(token)
            self._generated += 1

    def struct(self) -> Qwen3SamplingParams:
        """Return the struct for the next step; valid until the next append."""
        if self._penalised:
            address, count = self._history.buffer_info()
            self._struct.history = ctypes.cast(address, POINTER(c_uint32))
            self._struct.nhistory = count
            self._struct.ngenerated = self._generated
        return self._struct
