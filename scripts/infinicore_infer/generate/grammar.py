"""Grammars that answers must follow, by llguidance: JSON of a schema, calls of tools."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.errors import FieldError
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.deep_thread import DeepThread
from infinicore_infer.generate.grammar_constraint import GrammarConstraint, GrammarSource, Marks
from infinicore_infer.generate.grammar_trial import (
    ALL_SECONDS,
    LIMITS,
    TRIAL_LIMITS,
    too_much,
    trial,
    trials,
)
from infinicore_infer.text.tokenizer import Qwen3Tokenizer
from infinicore_infer.text.tool_calls import CALL, CALL_END

_MAX_GRAMMAR = 256 << 10


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be like.

    Attributes:
        text: The grammar, in llguidance's notation.
        field: What asks for it, for errors.
        calls_only: Whether it is only about what follows ``<tool_call>``; other text is free.
        parts: Grammars that it is made of, each with what asks for it.
        what: What it is, for errors, such as "the schema".
        tried: Whether texts are drawn from it beforehand, as it may take much work to follow; of
            schemas, their keywords tell.
    """

    text: str
    field: str
    calls_only: bool = False
    parts: tuple[Grammar, ...] = ()
    what: str = "the schema"
    tried: bool = False

    def __post_init__(self) -> None:
        """Refuse what takes too long to compile.

        Raises:
            FieldError: It is too long.
        """
        if len(self.text) > _MAX_GRAMMAR:
            problem = f"{self.what} takes {len(self.text)} characters"
            raise FieldError(self.field, f"{problem}; at most {_MAX_GRAMMAR} are supported")


def _explained(problem: str, *, lines: bool) -> str:
    """Return a complaint of llguidance's in one line, without its excerpt of the grammar.

    Keywords that only its wording hints at are named.

    Args:
        problem: The complaint.
        lines: Whether the lines of the grammar are known to whoever asks for it.
    """
    # What follows are lines of the grammar that it is about.
    problem = re.split(r"\n *\d+ \| ", problem)[0]
    problem = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", problem)
    # Of a regular expression that is none, the reason stands behind its text.
    problem = re.sub(r"(?s)^regex parse error:.*\nerror: ", "pattern: ", problem)
    problem = re.sub(r"(?s)regex parse error:.*\nerror: ", "", problem)
    problem = " ".join(problem.split())
    problem = re.sub(r"^(at )?(\d+)\((\d+)\): ", r"line \2, column \3: " if lines else "", problem)
    if problem.startswith("fuel exhausted"):
        return too_much(problem)
    if problem.startswith("oneOf constraints"):
        return "oneOf whose branches may both hold cannot be enforced; anyOf can"
    if problem.startswith("Resource "):
        name = problem.partition("'")[2].partition("'")[0]
        return f"$ref to {name[:100]!r}, which is not part of the schema"
    keywords = {"patternProperty ": "patternProperties", "Anchor ": "$ref", "regex ": "pattern"}
    named = [f"{keyword}: " for start, keyword in keywords.items() if problem.startswith(start)]
    return ("".join(named) + problem)[:300]


def _unescaped(text: str) -> str:
    """Return a grammar without the backslashes that may hide the name of a control token in it."""
    codes = r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))"
    text = re.sub(codes, lambda match: chr(int(match[1] or match[2], 16)), text)
    return re.sub(r"\\(.)", r"\1", text).encode("utf-8", "replace").decode()


class GrammarModel(Protocol):
    """What grammars have to know of a model."""

    meta: Qwen3MetaFromConfig

    @property
    def has_tokenizer(self) -> bool:
        """Whether it has a tokenizer."""

    @property
    def tokenizer(self) -> Qwen3Tokenizer:
        """Its tokenizer."""


class Grammars:
    """Compiles grammars for a model's tokenizer; the latest ones are kept."""

    def __init__(self) -> None:
        """Compile nothing until :meth:`attach` brings a model."""
        self._model: GrammarModel | None = None
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._words = 0
        self._source = lru_cache(maxsize=64)(self._make_source)
        self._problem = lru_cache(maxsize=1024)(self._find_problem)
        self._trial = lru_cache(maxsize=1024)(self._try)
        # Of its own, so that large schemas hold up nobody but those who have some as well. Chains
        # of rules, or of schemas that refer to each other, would overflow an ordinary stack.
        self._thread = DeepThread("grammars")
        # Answers in progress need not wait for what others ask for.
        self._renewals = DeepThread("grammars-again")

    def attach(self, model: GrammarModel) -> None:
        """Use a model. Takes a second or two with a large vocabulary, and nobody else gets a turn.

        So it is not left to the first request that needs it.
        """
        self._model = model
        # Without a tokenizer there are no conversations, only completions of token ids.
        if model.has_tokenizer:
            # Tokens that the model cannot choose are cut off the masks.
            count = max(model.meta.dvoc, model.tokenizer.vocab_size)
            self._words = (count + 31) // 32
            self._tokenizer = llguidance.LLTokenizer(
                model.tokenizer.definition(),
                n_vocab=count,
                eos_token=list(model.meta.end_tokens),
            )

    def _compile(
        self, grammar: str, limits: llguidance.LLParserLimits | None = None
    ) -> llguidance.LLMatcher:
        assert self._tokenizer is not None
        limits = LIMITS if limits is None else limits
        return llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)

    def _make_source(self, grammar: str) -> GrammarSource:
        work = partial(self._compile, grammar)
        return GrammarSource(work(), partial(self._renewals.run, work))

    def factory(
        self, grammar: Grammar, *, may_think: bool, thinking: bool, written: str = ""
    ) -> Callable[[], Constraint]:
        """Return a function that makes constraints of a grammar.

        Args:
            grammar: The grammar.
            may_think: Whether the answer may begin with thinking.
            thinking: Whether the prompt has begun it.
            written: The beginning of the answer that the prompt ends with.

        Raises:
            FieldError: The grammar, that is the schema, is not understood, or ``written`` does not
                follow it.
        """
        work = partial(self._factory, grammar, may_think, thinking, written)
        return self._thread.run(work)

    def _factory(
        self, grammar: Grammar, may_think: bool, thinking: bool, written: str
    ) -> Callable[[], Constraint]:
        assert self._model is not None
        if self._tokenizer is None:
            raise FieldError(grammar.field, "needs a tokenizer.json, which this model lacks")
        for part in (*grammar.parts, grammar):
            problem = self._problem(part.text, part.what, part.tried)
            if problem is not None:
                raise FieldError(part.field, f"{part.what} is not supported: {problem}")
        source = self._source(grammar.text)
        tokenizer, dvoc = self._model.tokenizer, self._model.meta.dvoc
        tokens: list[int] = []
        if written and not grammar.calls_only:
            tokens = tokenizer.encode(written)
            matcher = source.matcher.deep_copy()
            if matcher.try_consume_tokens(tokens) < len(tokens):
                problem = f"the last one does not begin with what {grammar.field} asks for"
                raise FieldError("messages", problem)

        def known(text: str) -> int | None:
            token = tokenizer.token_id(text)
            return token if token is not None and token < dvoc else None

        gap = tokenizer.encode("\n\n")
        marks = Marks(
            known("<think>") if may_think else None,
            known("</think>"),
            gap[0] if len(gap) == 1 and gap[0] < dvoc else None,
            known(CALL),
            known(CALL_END),
            tuple(token for token in self._model.meta.end_tokens if token < dvoc),
        )
        words = self._words
        return lambda: GrammarConstraint(
            source,
            dvoc,
            words,
            marks,
            thinking=thinking,
            calls_only=grammar.calls_only,
            written=tokens,
        )

    async def prepare(
        self, grammar: Grammar, *, may_think: bool, thinking: bool, written: str = ""
    ) -> Callable[[], Constraint]:
        """Do what :meth:`factory` does while the event loop goes on; see there."""
        work = partial(self._factory, grammar, may_think, thinking, written)
        return await self._thread.wait_for(work)

    def _find_problem(self, text: str, what: str, tried: bool) -> str | None:
        """Return what is wrong with a grammar; ``None``: nothing that a trial shows."""
        assert self._model is not None and self._tokenizer is not None
        tokenizer = self._model.tokenizer
        tokens = tokenizer.encode(f"{text}\n{_unescaped(text)}")
        control = next((t for t in tokens if tokenizer.is_special(t)), None)
        if control is not None:
            # Where nothing else may come, it would be written as the token that it is the name of.
            name = tokenizer.decode([control], skip_special=False)
            return f"{name} is a control token, which no name or value may contain"
        matcher = self._source(text).matcher.deep_copy()
        if not matcher.is_error():
            bits: NDArray[np.int32] = np.zeros((1, self._words), np.int32)
            llguidance.numpy.fill_next_token_bitmask(matcher, bits, 0)
            if not matcher.is_error() and bits.any():
                return self._tried(text, tried)
            if not matcher.is_error():
                return "no text has this form"
        return _explained(str(matcher.get_error()), lines=what.endswith("grammar"))

    def _tried(self, text: str, always: bool) -> str | None:
        """Return what goes wrong with texts that a grammar allows; ``None``: nothing."""
        over = time.thread_time() + ALL_SECONDS
        for part in [text] if always else trials(text):
            problem = self._trial(part, always)
            if problem is not None or time.thread_time() > over:
                return problem
        return None

    def _try(self, text: str, always: bool) -> str | None:
        assert self._model is not None
        matcher = self._compile(text, TRIAL_LIMITS)
        return trial(matcher, self._words, text, self._model.tokenizer, always=always)
