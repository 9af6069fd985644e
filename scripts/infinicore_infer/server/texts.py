"""Texts that go on as they are, without a chat template: what all endpoints for them share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from infinicore_infer.engine.async_engine import AsyncStream
from infinicore_infer.errors import FieldError
from infinicore_infer.server.answer import check_length
from infinicore_infer.server.forms import Form
from infinicore_infer.server.sampling import Sampling
from infinicore_infer.server.service import Service
from infinicore_infer.server.tokenizing import Truncation, refuse_long, tokenizing

_MAX_PROMPTS = 256


def _encode(
    service: Service, prompts: Sequence[str | list[int]], cut: Truncation | None
) -> list[list[int]]:
    """Return the token ids of every prompt, checked."""
    if not 0 < len(prompts) <= _MAX_PROMPTS:
        raise FieldError("prompt", f"must be from 1 to {_MAX_PROMPTS} prompts")
    result, context = [], service.engine.engine.context_length
    for prompt in prompts:
        if len(prompt) == 0:
            raise FieldError("prompt", "must not be empty")
        if isinstance(prompt, str) and service.model.has_tokenizer:
            limit = cut.readable(context) if cut else context
            refuse_long(service.model.tokenizer, prompt, limit, "prompt")
        with tokenizing("prompt"):
            tokens = service.model.encode(prompt)
        if cut is not None:
            tokens = cut.cut(tokens, context)
        check_length(service, tokens, "prompt")
        result.append(tokens)
    return result


async def begin_texts(
    service: Service,
    prompts: Sequence[str | list[int]],
    sampling: Sampling,
    name: str,
    *,
    form: Callable[[], Form | None] = lambda: None,
    truncation: Truncation | None = None,
) -> AsyncStream:
    """Check prompts and hand them to the engine.

    Args:
        service: The state behind the endpoints.
        prompts: Texts, whose control tokens are read as such, or token ids.
        sampling: How each goes on.
        name: For messages.
        form: Returns what the texts must be like, ``None`` for anything; called on another thread.
        truncation: How prompts that are too long are cut; ``None``: they are not.

    Raises:
        FieldError: A prompt or the form is wrong.
        EngineError: There is no room now, or the engine is draining.
    """
    encoded = await asyncio.to_thread(_encode, service, prompts, truncation)
    constraint = None
    asked = await asyncio.to_thread(form)
    if asked is not None:
        grammar = asked.grammar()
        constraint = await service.grammars.prepare(grammar, may_think=False, thinking=False)
    params = await asyncio.to_thread(sampling.params, service.model)
    return service.submit(
        [sampling.submission(tokens, params, name, constraint) for tokens in encoded]
    )
