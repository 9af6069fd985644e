"""What lets only tokens come that a grammar allows, one answer each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

# Tokens that are read at a time where an answer is read again.
_CHUNK = 64
# All answers wait for a mask. What takes longer than this of the processor's time, for all of an
# answer's masks together, is borne for so long: ambiguous grammars take more and more.
_QUICK_SECONDS, _SLOW_SECONDS = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Marks:
    """Tokens that a grammar does not speak of; ``None`` is one that cannot come.

    Attributes:
        think: Begins thinking, as the first token only.
        think_end: Ends it.
        gap: The empty line that models write after it.
        call: Begins a call.
        call_end: Ends it.
        ends: End the answer.
    """

    think: int | None
    think_end: int | None
    gap: int | None
    call: int | None
    call_end: int | None
    ends: tuple[int, ...] = ()


class GrammarSource:
    """Makes matchers of one grammar, which share what they find out about it.

    They keep all states of its regular expressions that any of them has met; for some patterns each
    step of a long answer meets hundreds, until there is no room for more. Then a new source begins.

    Attributes:
        matcher: What is copied.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, compiled: Callable[[], llguidance.LLMatcher]
    ) -> None:
        """Begin with a matcher that has taken nothing.

        Args:
            matcher: The matcher.
            compiled: Makes another one.
        """
        self._compiled = compiled
        self.matcher = matcher

    def renewed(self, full: llguidance.LLMatcher) -> llguidance.LLMatcher:
        """Return what to copy instead of a matcher that has no room any more."""
        if self.matcher is full:
            self.matcher = self._compiled()
        return self.matcher


class GrammarConstraint:
    """Lets only tokens come that a grammar allows, after the thinking if there is any."""

    def __init__(
        self,
        source: GrammarSource,
        dvoc: int,
        words: int,
        marks: Marks,
        *,
        thinking: bool,
        calls_only: bool = False,
        written: Sequence[int] = (),
    ) -> None:
        """Constrain one answer.

        Args:
            source: Makes matchers of the grammar.
            dvoc: Size of the vocabulary.
            words: Length of the matcher's bit masks, whose tokenizer may know more tokens.
            marks: Tokens with a meaning.
            thinking: Whether thinking has begun already.
            calls_only: Whether the grammar is that of each call; other text is free.
            written: The first tokens of the answer, which are there already and follow the grammar.
        """
        self._source = source
        self._origin = source.matcher
        # What the matcher has taken, to take it again.
        self._taken = list(written)
        self._bits: NDArray[np.int32] = np.zeros((1, words), np.int32)
        self._matcher = None if calls_only else self._copy()
        self._dvoc = dvoc
        self._marks = marks
        self._thinking = thinking
        self._slow = 0.0
        self._calls_only = calls_only
        # What may come besides.
        self._extra = marks.think
        self._thoughts = np.full((dvoc + 31) // 32, 0xFFFFFFFF, np.uint32)
        for token in marks.ends:
            self._thoughts[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << (token % 32)))

    def mask(self) -> NDArray[np.uint32] | None:
        """Return the bit mask of allowed tokens, or ``None`` for all.

        Raises:
            RuntimeError: The grammar has no way to go on.
        """
        if self._matcher is None:
            return None
        if self._thinking:
            # An answer that ends amid its thinking would not have the form.
            return self._thoughts
        begin = time.thread_time()
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            self._matcher = self._again()
            llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            raise RuntimeError(f"grammar: {self._matcher.get_error()}")
        self._slow += max(time.thread_time() - begin - _QUICK_SECONDS, 0)
        if self._slow > _SLOW_SECONDS:
            raise RuntimeError("grammar: it takes too much work to follow the further it goes")
        mask: NDArray[np.uint32] = self._bits[0].view(np.uint32)[: (self._dvoc + 31) // 32]
        if self._extra is not None:
            mask[self._extra // 32] |= np.uint32(1 << (self._extra % 32))
        return mask

    def _copy(self) -> llguidance.LLMatcher:
        """Return a new matcher that has taken the tokens so far."""
        matcher = self._origin.deep_copy()
        for start in range(0, len(self._taken), _CHUNK):
            if start:
                # The work that it may do is counted from mask to mask.
                llguidance.numpy.fill_next_token_bitmask(matcher, self._bits, 0)
            matcher.consume_tokens(self._taken[start : start + _CHUNK])
        return matcher

    def _again(self) -> llguidance.LLMatcher:
        """Return such a matcher of a new source."""
        self._origin = self._source.renewed(self._origin)
        return self._copy()

    def accept(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            RuntimeError: The grammar does not allow it.
        """
        marks, extra, self._extra = self._marks, self._extra, None
        if self._thinking:
            self._thinking = token != marks.think_end
            self._extra = None if self._thinking else marks.gap
        elif token == extra:
            self._thinking = token == marks.think
        elif self._matcher is None:
            self._taken = []
            self._matcher = self._copy() if token == marks.call else None
        else:
            if not self._matcher.is_stopped():
                if not self._matcher.consume_token(token):
                    self._matcher = self._again()
                    self._matcher.consume_token(token)
                if self._matcher.is_error():
                    raise RuntimeError(f"grammar: {self._matcher.get_error()}")
                self._taken.append(token)
            if self._calls_only and token == marks.call_end:
                self._matcher = None
