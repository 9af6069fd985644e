"""/tokenize, /detokenize, /apply-template: texts and conversations to token ids, and back."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.errors import FieldError
from infinicore_infer.server.chat_fields import ChatFields
from infinicore_infer.server.chat_request import ChatRequest, ToolChoice, function_tool
from infinicore_infer.server.fields import Body, Ids, Objects
from infinicore_infer.server.http import json_response
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.service import service_of
from infinicore_infer.server.tokenizing import refuse_long, tokenizing
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


class TokenizeBody(ChatFields):
    """A request to /tokenize: a text (``prompt``, or ``content``) or a conversation."""

    endpoint = "/tokenize"

    prompt: str | None = None
    content: str | None = None
    messages: Objects | None = None
    tool_choice: str | JsonObject | None = None
    # llama-server's: whether control tokens are read as such.
    parse_special: bool = True
    return_token_strs: bool | None = None
    # llama-server's name of the same, in another form.
    with_pieces: bool | None = None

    def encode(self, model: Qwen3ForCausalLM, limit: int) -> list[int]:
        """Return the token ids; of a conversation, those that an answer to it begins with.

        Args:
            model: The model.
            limit: How many tokens the context holds; far more are refused.

        Raises:
            FieldError: Naming the field.
        """
        text = self.prompt if self.prompt is not None else self.content
        if (text is None) == (self.messages is None):
            raise FieldError("prompt", "give either prompt or messages")
        if self.messages is not None:
            return self._conversation(self.messages).prompt(model, limit)
        refuse_long(model.tokenizer, text or "", limit, "prompt")
        with tokenizing("prompt"):
            return model.tokenizer.encode(text or "", self.parse_special)

    def template_text(self, model: Qwen3ForCausalLM) -> str:
        """Return a conversation as its template writes it.

        Raises:
            FieldError: Naming the field.
        """
        if self.messages is None or self.prompt is not None or self.content is not None:
            raise FieldError("messages", "give these, and no prompt")
        return self._conversation(self.messages).text(model)

    def _conversation(self, messages: list[JsonObject]) -> ChatRequest:
        continued, begins = self.ending(messages)
        return ChatRequest(
            messages=messages,
            tools=[function_tool(i, tool) for i, tool in self.served_tools()],
            tool_choice=ToolChoice("none") if self.tool_choice == "none" else ToolChoice(),
            thinking=self.asked_thinking(),
            template_variables=self.chat_template_kwargs or {},
            continued=continued,
            begins=begins,
            implied=self.leaves_ending,
        )


class TemplateBody(TokenizeBody):
    """A request to /apply-template: a conversation."""

    endpoint = "/apply-template"


class DetokenizeBody(Body):
    """A request to /detokenize."""

    endpoint = "/detokenize"

    tokens: Ids


async def tokenize(request: Request) -> Response:
    """Return the token ids of a text or a conversation."""
    service = service_of(request)
    body = await service.read(request, TokenizeBody)
    engine = service.ready(body.model).engine
    tokenizer = engine.model.tokenizer
    tokens = await asyncio.to_thread(body.encode, engine.model, engine.context_length)
    listed: object = tokens
    if body.with_pieces:
        listed = [{"id": token, "piece": _piece(tokenizer, token)} for token in tokens]
    result: JsonObject = {
        "tokens": listed,
        "count": len(tokens),
        "max_model_len": engine.context_length,
    }
    if body.return_token_strs:
        result["token_strs"] = [tokenizer.decode([token], False) for token in tokens]
    return json_response(result)


def _piece(tokenizer: Qwen3Tokenizer, token: int) -> str | list[int]:
    """Return a token's text, or its bytes where it is no text by itself."""
    data = tokenizer.token_bytes(token, skip_special=False)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


async def apply_template(request: Request) -> Response:
    """Return the prompt that a conversation becomes, as text."""
    service = service_of(request)
    body = await service.read(request, TemplateBody)
    engine = service.ready(body.model).engine
    text = await asyncio.to_thread(body.template_text, engine.model)
    return json_response({"prompt": text})


async def detokenize(request: Request) -> Response:
    """Return the text of token ids."""
    service = service_of(request)
    body = await service.read(request, DetokenizeBody)
    model = service.ready(body.model).engine.model

    def text() -> str:
        for i, token in enumerate(body.tokens):
            if not 0 <= token < model.meta.dvoc:
                raise FieldError(f"tokens[{i}]", f"there is no token {token}")
        return model.tokenizer.decode(body.tokens, False)

    decoded = await asyncio.to_thread(text)
    return json_response({"prompt": decoded, "content": decoded})
