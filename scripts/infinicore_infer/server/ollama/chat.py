"""/api/chat and /api/generate: Ollama's requests for text."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.engine.async_engine import AsyncStream
from infinicore_infer.server.answer import Answer, PlainText, begin_chat
from infinicore_infer.server.http import json_response
from infinicore_infer.server.ollama.fields import GenerateBody, OllamaChatBody
from infinicore_infer.server.ollama.models import served_name
from infinicore_infer.server.ollama.writer import OllamaWriter, as_message, as_response, loaded
from infinicore_infer.server.service import Service, service_of
from infinicore_infer.server.texts import begin_texts


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    body = await service.read(request, OllamaChatBody)
    name = served_name(service, body.model)
    if not body.messages:
        return json_response(loaded(name, as_message))
    begun = await begin_chat(service, body.chat_request, request.state.request_id)
    writer = OllamaWriter(
        name,
        begun.answers[0],
        as_message,
        service.model.tokenizer,
        top_logprobs=body.top_logprobs is not None,
    )
    return await service.answer(request, begun.stream, writer, streamed=body.streamed)


async def _continue(
    service: Service, body: GenerateBody, prompt: str, name: str
) -> tuple[Answer, AsyncStream]:
    """Begin to continue a text as it is."""
    stream = await begin_texts(
        service, [prompt], body.answer_sampling(), name, form=body.answer_form
    )
    end_tokens = frozenset(service.model.meta.end_tokens)
    return Answer(stream.jobs[0], PlainText(), end_tokens), stream


async def generate(request: Request) -> Response:
    """Answer a question, or continue a text."""
    service = service_of(request)
    body = await service.read(request, GenerateBody)
    name = served_name(service, body.model)
    body.check_rest()
    if not body.prompt:
        return json_response(loaded(name, as_response))
    if body.raw:
        answer, stream = await _continue(service, body, body.prompt, request.state.request_id)
    else:
        begun = await begin_chat(service, body.chat_request, request.state.request_id)
        answer, stream = begun.answers[0], begun.stream
    writer = OllamaWriter(
        name,
        answer,
        as_response,
        service.model.tokenizer,
        top_logprobs=body.top_logprobs is not None,
    )
    return await service.answer(request, stream, writer, streamed=body.streamed)
