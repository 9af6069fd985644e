"""Instances that a grammar allows, drawn at random, and texts that it is asked about."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
from infinicore_infer.generate.grammar import Grammars
from infinicore_infer.server.forms import json_form
from qwen3 import Qwen3ForCausalLM

_CLOSING = ('"', "}", "]", '"}', "null", '"]', "0", "1")
# What the grammar writes between items; it allows no other spaces.
_SEPARATORS = (", ", ": ")


def draw(
    model: Qwen3ForCausalLM, grammars: Grammars, schema: Any, rng: random.Random, steps: int = 300
) -> str | None:
    """Return an instance of a schema, or ``None`` if none came to its end within so many tokens.

    Tokens are drawn at random from the masks; those that close something are preferred.

    Raises:
        FieldError: The schema is refused.
    """
    constraint = grammars.factory(
        json_form(schema, "x").grammar(), may_think=False, thinking=False
    )()
    closing = {t for text in _CLOSING for t in model.encode(text)}
    ends, tokens = set(model.meta.end_tokens), []
    for _ in range(steps):
        mask = constraint.mask()
        assert mask is not None
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: model.meta.dvoc]
        options = np.flatnonzero(bits).tolist()
        assert options, model.tokenizer.decode(tokens, skip_special=False)
        good = [token for token in options if token in closing or token in ends]
        token = rng.choice(good if good and rng.random() < 0.7 else options)
        constraint.accept(token)
        if token in ends:
            return model.tokenizer.decode(tokens, skip_special=False)
        tokens.append(token)
    return None


def allows(model: Qwen3ForCausalLM, grammars: Grammars, schema: Any, instance: Any) -> bool:
    """Return whether an answer could be an instance, written as json.dumps does.

    Raises:
        FieldError: The schema is refused.
    """
    constraint = grammars.factory(
        json_form(schema, "x").grammar(), may_think=False, thinking=False
    )()
    text = json.dumps(instance, ensure_ascii=False, separators=_SEPARATORS)
    for token in [*model.tokenizer.encode(text, False), model.meta.end_tokens[0]]:
        mask = constraint.mask()
        assert mask is not None
        if not mask[token // 32] >> (token % 32) & 1:
            return False
        constraint.accept(token)
    return True
