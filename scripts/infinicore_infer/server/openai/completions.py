"""/v1/completions: text goes on as it is, without a chat template."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.engine.async_engine import AsyncStream
from infinicore_infer.engine.jobs import Job, Submission, Update
from infinicore_infer.generate.results import TokenLogprobs
from infinicore_infer.server.errors import ApiError, from_exception, json_response, named
from infinicore_infer.server.openai.chat import check_length
from infinicore_infer.server.openai.fields import CompletionBody
from infinicore_infer.server.openai.usage import LegacyLogprobs, stop_reason, timings, usage
from infinicore_infer.server.service import EventStream, Service, read_body
from infinicore_infer.text.streaming import IncrementalDetokenizer
from infinicore_infer.text.tokenizer import Qwen3Tokenizer

_MAX_PROMPTS = 256


def _prompts(service: Service, body: CompletionBody) -> list[list[int]]:
    """Return the token ids of every prompt, checked."""
    prompt = body.prompt
    items: list[Any]
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        items = [prompt]
    else:
        items = list(prompt)
    if not 0 < len(items) <= _MAX_PROMPTS:
        raise ApiError(400, f"prompt: must be from 1 to {_MAX_PROMPTS} prompts", "prompt")
    result = []
    for item in items:
        if len(item) == 0:
            raise ApiError(400, "prompt: must not be empty", "prompt")
        with named("prompt"):
            tokens = service.model.encode(item)
        check_length(service, tokens, "prompt")
        result.append(tokens)
    return result


def _texts(tokenizer: Qwen3Tokenizer, tokens: list[int], skip_special: bool) -> list[str]:
    """Return the text that becomes complete with each token; joined, they are the whole."""
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special)
    texts = [detokenizer.push(token) for token in tokens]
    texts[-1] += detokenizer.finish()
    return texts


class _Answer:
    """One choice, as it grows."""

    def __init__(self, index: int, job: Job, body: CompletionBody, model: Qwen3ForCausalLM) -> None:
        self.index = index
        tokenizer = model.tokenizer
        self._end_tokens = model.meta.end_tokens
        self._job = job
        self._body = body
        self._tokenizer = tokenizer
        self._legacy = LegacyLogprobs(tokenizer, body.logprobs or 0)
        self._items: list[tuple[int, TokenLogprobs | None]] = []
        self._texts: list[str] = []

    def add(self, token: int, text: str, scores: TokenLogprobs | None) -> None:
        """Add a generated token."""
        self._items.append((token, scores))
        self._texts.append(text)

    def echo(self) -> None:
        """Begin with the prompt; its log-probabilities are there when the answer is."""
        result = self._job.sequence.result
        prompt = self._job.sequence.all_tokens[: result.prompt_tokens]
        scores: list[TokenLogprobs | None] = [None, *self._job.sequence.prompt_scores]
        scores += [None] * (len(prompt) - len(scores))
        self._items = [*zip(prompt, scores, strict=True), *self._items]
        self._texts = [*_texts(self._tokenizer, prompt, False), *self._texts]

    def take(self, reason: str | None) -> dict[str, Any]:
        """Return a choice with what came since the last call."""
        items, texts = self._items, self._texts
        self._items, self._texts = [], []
        logprobs = self._legacy.object(items, texts) if self._body.logprobs is not None else None
        choice = {
            "index": self.index,
            "text": "".join(texts),
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        if reason is not None:
            cut = reason == "length"
            choice["stop_reason"] = None if cut else stop_reason(self._job, self._end_tokens)
        return choice


async def completions(service: Service, request: Request) -> Response:
    """Continue texts."""
    body = await read_body(request, CompletionBody, service.config.max_body_bytes)
    engine = service.ready(body.model)
    body.check_rest()
    try:
        prompts = await asyncio.to_thread(_prompts, service, body)
        model = engine.engine.model
        limit = 16 if body.max_tokens is None else body.max_tokens
        params = body.sampling(model, max_steps=max(limit, 1), logprobs=body.logprobs)
    except Exception as error:
        raise from_exception(error) from error
    stream = service.submit(
        [
            Submission(
                prompt,
                params,
                name=request.state.request_id,
                stop_tokens=body.stop_token_ids or (),
                prompt_logprobs=body.logprobs if body.echo else None,
                repetition=body.repetition,
            )
            for prompt in prompts
        ]
    )
    answers = [_Answer(index, job, body, model) for index, job in enumerate(stream.jobs)]
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.config.model_name,
    }
    if body.stream:
        events = _events(service, body, stream, answers, head)
        return EventStream(events, lambda: engine.cancel(stream))

    def add(index: int, update: Update) -> None:
        piece = update.piece
        if piece is not None and limit:
            answers[index].add(piece.token, piece.text, piece.logprobs)

    await service.deliver(request, stream, add)
    choices = []
    for answer, job in zip(answers, stream.jobs, strict=True):
        if body.echo:
            answer.echo()
        choices.append(answer.take(job.sequence.result.finish_reason if limit else "length"))
    counts = usage(stream.jobs)
    if not limit:
        counts["completion_tokens"], counts["total_tokens"] = 0, counts["prompt_tokens"]
    return json_response(
        {**head, "choices": choices, "usage": counts, "timings": timings(stream.jobs)}
    )


async def _events(
    service: Service,
    body: CompletionBody,
    stream: AsyncStream,
    answers: list[_Answer],
    head: dict[str, Any],
) -> AsyncIterator[dict[str, Any] | None]:
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    if with_usage:
        head["usage"] = None
    if body.echo:
        for answer in answers:
            answer.echo()
            yield {**head, "choices": [answer.take(None)]}
    async for item in service.follow(stream):
        if item is None:
            yield None
            continue
        index, update = item
        if update.piece is None:
            continue
        answers[index].add(update.piece.token, update.piece.text, update.piece.logprobs)
        if update.done:
            choice = answers[index].take(update.piece.finish_reason)
            yield {**head, "choices": [choice], "timings": timings([stream.jobs[index]])}
        elif update.piece.text:
            yield {**head, "choices": [answers[index].take(None)]}
    if with_usage:
        yield {**head, "choices": [], "usage": usage(stream.jobs), "timings": timings(stream.jobs)}
