"""/v1/completions: text goes on as it is, without a chat template."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.engine.async_engine import AsyncStream
from infinicore_infer.engine.jobs import Job, Update
from infinicore_infer.generate.results import GenerationPiece, TokenLogprobs
from infinicore_infer.server.counts import Counts, count, running, stop_reason, timings
from infinicore_infer.server.form_fields import response_form
from infinicore_infer.server.http import StreamForm
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.logprobs import prompt_logprobs
from infinicore_infer.server.openai.errors import COMPLETION_STREAM
from infinicore_infer.server.openai.fields import CompletionBody
from infinicore_infer.server.openai.logprobs import CompletionLogprobs
from infinicore_infer.server.openai.usage import usage
from infinicore_infer.server.service import Service, service_of
from infinicore_infer.server.texts import begin_texts
from infinicore_infer.text.streaming import IncrementalDetokenizer
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


def _items(body: CompletionBody) -> list[str | list[int]]:
    """Return the prompts of a request, which may be one or a list of them."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    ids = [token for token in prompt if isinstance(token, int)]
    if ids:
        return [ids]
    return [item for item in prompt if not isinstance(item, int)]


def _texts(tokenizer: Qwen3Tokenizer | None, tokens: list[int]) -> list[str]:
    """Return the text that becomes complete with each token; joined, they are the whole."""
    if tokenizer is None:
        return [""] * len(tokens)
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special=False)
    texts = [detokenizer.push(token) for token in tokens]
    texts[-1] += detokenizer.finish()
    return texts


class _Choice:
    """One answer, as it grows."""

    def __init__(
        self,
        index: int,
        job: Job,
        tokenizer: Qwen3Tokenizer | None,
        end_tokens: Collection[int],
        body: CompletionBody,
    ) -> None:
        self.job = job
        self.tokens = 0
        self._index = index
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._body = body
        named_by = None if body.return_tokens_as_token_ids else tokenizer
        self._logprobs = None if body.logprobs is None else CompletionLogprobs(named_by)
        self._items: list[tuple[int, TokenLogprobs | None]] = []
        self._texts: list[str] = []
        # Of what came since the last call; the prompt's once.
        self._ids: list[int] = []
        self._prompt_ids = self.prompt if body.return_token_ids else []

    @property
    def prompt(self) -> list[int]:
        """The prompt's token ids."""
        sequence = self.job.sequence
        return sequence.all_tokens[: sequence.result.prompt_tokens]

    def add(self, piece: GenerationPiece) -> None:
        """Add a generated token."""
        self.tokens += 1
        self._ids.append(piece.token)
        self._items.append((piece.token, piece.logprobs))
        self._texts.append(piece.text)

    def echo(self) -> None:
        """Begin with the prompt; its log-probabilities are there when the answer is."""
        prompt, top = self.prompt, self._body.echoed_logprobs
        scores: list[TokenLogprobs | None] = [None]
        if top is not None:
            known = self.job.sequence.prompt_scores
            scores += [replace(score, top=score.top[:top]) for score in known]
        scores += [None] * (len(prompt) - len(scores))
        self._items = [*zip(prompt, scores, strict=True), *self._items]
        self._texts = [*_texts(self._tokenizer, prompt), *self._texts]

    def take(self, reason: str | None) -> JsonObject:
        """Return a choice with what came since the last call."""
        items, texts = self._items, self._texts
        self._items, self._texts = [], []
        choice: JsonObject = {
            "index": self._index,
            "text": "".join(texts),
            "logprobs": None if self._logprobs is None else self._logprobs.object(items, texts),
            "finish_reason": reason,
        }
        if reason is not None:
            cut = reason == "length"
            choice["stop_reason"] = None if cut else stop_reason(self.job, self._end_tokens)
        if self._body.return_token_ids:
            choice["token_ids"], self._ids = self._ids, []
        if self._prompt_ids:
            choice["prompt_token_ids"], self._prompt_ids = self._prompt_ids, []
        return choice

    def whole(self, reason: str) -> JsonObject:
        """Return a choice that is sent whole."""
        choice, top = self.take(reason), self._body.prompt_logprobs
        if top is not None:
            scores = self.job.sequence.prompt_scores
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, scores, top)
        return choice


class CompletionWriter:
    """Writes text completions."""

    form: StreamForm = COMPLETION_STREAM

    def __init__(self, service: Service, body: CompletionBody, stream: AsyncStream) -> None:
        """Write the answers to a request.

        Args:
            service: The state behind the endpoints.
            body: The request.
            stream: Brings its answers.
        """
        self._body = body
        self._jobs = stream.jobs
        model = service.model
        tokenizer = model.tokenizer if model.has_tokenizer else None
        self._choices = [
            _Choice(index, job, tokenizer, model.meta.end_tokens, body)
            for index, job in enumerate(stream.jobs)
        ]
        self._head: JsonObject = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.called(body.model),
            "system_fingerprint": service.fingerprint,
        }
        if body.stream and body.with_usage:
            self._head["usage"] = None

    def begin(self) -> list[JsonObject]:
        """Return the events before the first token: the prompts, if they are wanted."""
        if not self._body.echo:
            return []
        for choice in self._choices:
            choice.echo()
        return [self._event(choice, None) for choice in self._choices]

    def _event(self, choice: _Choice, reason: str | None) -> JsonObject:
        event: JsonObject = {**self._head, "choices": [choice.take(reason)]}
        if self._body.with_running_usage:
            event["usage"] = usage(running(choice.job, choice.tokens))
        return event

    def push(self, index: int, update: Update) -> list[JsonObject]:
        """Take news of one of the answers; return the events it brings."""
        piece, choice = update.piece, self._choices[index]
        if piece is None:
            return []
        choice.add(piece)
        if update.done:
            event = self._event(choice, piece.finish_reason)
            return [{**event, "timings": timings([choice.job])}]
        return [self._event(choice, None)] if piece.text else []

    def finish(self) -> list[JsonObject]:
        """Return the events after the last token: the usage, if it is wanted."""
        if not self._body.with_usage:
            return []
        counts = usage(count(self._jobs))
        return [{**self._head, "choices": [], "usage": counts, "timings": timings(self._jobs)}]

    def take(self, index: int, update: Update) -> None:
        """Take news of an answer that is sent whole."""
        if update.piece is not None and self._body.limit:
            self._choices[index].add(update.piece)

    def whole(self) -> JsonObject:
        """Return the completion."""
        choices = []
        for choice in self._choices:
            if self._body.echo:
                choice.echo()
            reason = choice.job.sequence.result.finish_reason
            choices.append(choice.whole(reason if self._body.limit else "length"))
        counts = count(self._jobs)
        if not self._body.limit:
            # The one token that was computed for the prompt's log-probabilities is not shown.
            counts = Counts(counts.prompt, counts.cached, 0)
        totals = {"usage": usage(counts), "timings": timings(self._jobs)}
        return {**self._head, "choices": choices, **totals}


async def completions(request: Request) -> Response:
    """Continue texts."""
    service = service_of(request)
    body = await service.read(request, CompletionBody)
    service.ready(body.model)
    stream = await begin_texts(
        service,
        _items(body),
        body.completion_sampling(),
        request.state.request_id,
        form=lambda: body.asked_form(response_form(body.response_format)),
        truncation=body.truncation(None if body.max_tokens == -1 else body.limit),
    )
    writer = CompletionWriter(service, body, stream)
    return await service.answer(request, stream, writer, streamed=bool(body.stream))
