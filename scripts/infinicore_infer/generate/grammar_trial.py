"""Tries a grammar out before any answer has to follow it.

Some regular expressions take more work the further a text goes: ``(.{0,200}a){0,20}`` has to keep
in mind where each of its repetitions may have begun. What is accepted must not fail in mid-answer,
so texts are drawn at random beforehand, with less work allowed for each token than in an answer.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from infinicore_infer.text.tokenizer import Qwen3Tokenizer

# Enough for all the properties that a grammar of the longest length has room for. A step may take
# some 25 ms for the worst of them, and some 80 ms for the worst expressions that pass the trial.
_ITEMS_IN_ROW, _ITEMS, _EXPRESSIONS = 1 << 17, 1 << 19, 4_000_000
LIMITS = llguidance.LLParserLimits(
    max_items_in_row=_ITEMS_IN_ROW, step_max_items=_ITEMS, step_lexer_fuel=_EXPRESSIONS
)
# An answer is longer than a trial.
TRIAL_LIMITS = llguidance.LLParserLimits(
    max_items_in_row=_ITEMS_IN_ROW, step_max_items=_ITEMS, step_lexer_fuel=_EXPRESSIONS // 10
)
_TEXTS, _STEPS = 2, 64
# Of one text; whatever is slower has met one of the limits long before.
_SECONDS = 1.0
# Of all patterns of a grammar; the others go untried.
ALL_SECONDS = 5.0
# Keywords whose grammars grow with what has been written.
_GROWING = re.compile(r'"(pattern|patternProperties|(min|max)(Items|Properties))"')


def trials(text: str) -> list[str]:
    """Return what is to be tried of a grammar: each of its patterns alone, and it as a whole."""
    if not _GROWING.search(text):
        return []
    decoder, patterns = json.JSONDecoder(), dict[str, None]()
    for found in re.finditer("%json ", text):
        try:
            schema, _ = decoder.raw_decode(text, found.end())
        except ValueError:
            continue  # part of a name
        patterns |= dict.fromkeys(_patterns(schema))
    alone = [json.dumps({"type": "string", "pattern": pattern}) for pattern in patterns]
    return [*(f"start: %json {schema}" for schema in alone), text]


def _patterns(schema: object) -> Iterator[str]:
    if isinstance(schema, list):
        for item in schema:
            yield from _patterns(item)
    elif isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        if isinstance(schema.get("patternProperties"), dict):
            yield from schema["patternProperties"]
        for item in schema.values():
            yield from _patterns(item)


def trial(
    matcher: llguidance.LLMatcher,
    words: int,
    text: str,
    tokenizer: Qwen3Tokenizer,
    *,
    always: bool = False,
) -> str | None:
    """Draw texts that a grammar allows; return what goes wrong, or ``None``.

    Args:
        matcher: A matcher of the grammar with :data:`TRIAL_LIMITS`, which is only copied.
        words: Length of its bit masks.
        text: The grammar.
        tokenizer: The model's.
        always: Whether a text that takes long is something wrong. Of schemas it is not: what takes
            too long there meets a limit.
    """
    # Between what is repeated there often is a separator, which few tokens of a text have.
    marks = [tokenizer.token_id(char) for char in set(text) if not char.isalnum() and char != '"']
    known = sorted(token for token in marks if token is not None)
    bits: NDArray[np.int32] = np.zeros((1, words), np.int32)
    for seed in range(_TEXTS):
        rng, copy = random.Random(seed), matcher.deep_copy()
        over = time.thread_time() + _SECONDS
        for step in range(_STEPS):
            llguidance.numpy.fill_next_token_bitmask(copy, bits, 0)
            options = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
            if copy.is_error() or copy.is_stopped() or not len(options):
                break
            drawn = [int(rng.choice(options)) for _ in range(32)]
            # Strings that do not end are the hardest.
            drawn = [token for token in drawn if b'"' not in tokenizer.token_bytes(token)] or drawn
            if step % 4 == 3:
                drawn = np.intersect1d(options, known).tolist() or drawn
            copy.consume_token(int(rng.choice(drawn)))
            if copy.is_error():
                break
            if time.thread_time() > over:
                if always:
                    return too_much(f"{step + 1} tokens took {_SECONDS:g} s")
                break
        if copy.is_error():
            return too_much(copy.get_error())
    return None


def too_much(problem: str) -> str:
    """Return what to say of a grammar that fails in a trial, from llguidance's complaint."""
    if "doesn't satisfy the grammar" in problem:
        # Where nothing else may come, the text of a control token is taken for the token.
        return "it asks for the name of a control token, which no text may contain"
    reason = problem.partition("\n")[0].partition("<state>")[0].strip()
    return (
        f"it takes too much work to follow ({reason[:100]}); smaller counts in patterns, "
        "or fewer repetitions inside each other, take less"
    )
