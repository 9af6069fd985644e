"""/v1/responses/ID: responses that are stored or being made, their items; /input_tokens."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.server.errors import ApiError
from infinicore_infer.server.http import EventStream, json_response
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.openai.background import BackgroundRun
from infinicore_infer.server.openai.response_items import RESPONSE_STREAM
from infinicore_infer.server.openai.response_state import as_object, state_of
from infinicore_infer.server.openai.response_store import objects
from infinicore_infer.server.openai.responses import InputTokensBody
from infinicore_infer.server.service import service_of

# Items of a page.
_PAGE, _LONGEST_PAGE = 20, 100


def _number(request: Request, name: str, low: int, high: int) -> int | None:
    """Return a whole number of the query.

    Raises:
        ApiError: It is none, or out of range.
    """
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18 or not low <= int(text) <= high:
        raise ApiError(
            400, f"{name}: must be a whole number from {low} to {high}, got {text[:40]!r}", name
        )
    return int(text)


async def retrieve(request: Request) -> Response:
    """Return a response, or the events of its stream behind one of them."""
    identity = request.path_params["id"]
    found = state_of(request).found(identity)
    streamed = request.query_params.get("stream", "false")
    if streamed not in ("true", "false"):
        raise ApiError(400, f"stream: must be true or false, got {streamed[:40]!r}", "stream")
    after = _number(request, "starting_after", 0, 10**9)
    if streamed == "false":
        if after is not None:
            raise ApiError(400, "starting_after: only allowed with stream=true", "starting_after")
        return json_response(as_object(found))
    if not found.events and not (isinstance(found, BackgroundRun) and found.streamed):
        message = f"response {identity!r} was not made with background and stream, or before a "
        raise ApiError(400, f"{message}restart, so it cannot be streamed", "stream")
    events = found.follow(-1 if after is None else after)
    return EventStream(events, RESPONSE_STREAM)


async def delete(request: Request) -> Response:
    """Forget a response; one that is being made is cancelled."""
    state, identity = state_of(request), request.path_params["id"]
    found = state.found(identity)
    if isinstance(found, BackgroundRun):
        await found.cancel()
    state.store.remove(identity)
    return json_response({"id": identity, "object": "response", "deleted": True})


async def cancel(request: Request) -> Response:
    """End a response that is made in the background; one that has ended is returned as it is."""
    state, identity = state_of(request), request.path_params["id"]
    found = state.found(identity)
    response = as_object(found)
    if not response["background"]:
        message = f"response {identity!r} was not made in the background, so it cannot be cancelled"
        raise ApiError(400, message, code="not_in_background")
    if isinstance(found, BackgroundRun):
        await found.cancel()
        response = found.response()
    return json_response(response)


async def input_items(request: Request) -> Response:
    """List the items that a client sent, page by page."""
    state, identity = state_of(request), request.path_params["id"]
    found = state.found(identity)
    if isinstance(found, BackgroundRun):
        inputs = found.inputs
    else:
        inputs = found.turn.inputs
    items = await asyncio.to_thread(objects, inputs)
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"order: must be asc or desc, got {order[:40]!r}", "order")
    if order == "desc":
        items.reverse()
    after = request.query_params.get("after")
    if after is not None:
        places = [i for i, item in enumerate(items) if item.get("id") == after]
        if not places:
            raise ApiError(400, f"after: there is no item {after[:80]!r}", "after")
        items = items[places[0] + 1 :]
    limit = _number(request, "limit", 1, _LONGEST_PAGE) or _PAGE
    page = items[:limit]
    result: JsonObject = {
        "object": "list",
        "data": page,
        "first_id": page[0].get("id") if page else None,
        "last_id": page[-1].get("id") if page else None,
        "has_more": len(items) > len(page),
    }
    return json_response(result)


async def input_tokens(request: Request) -> Response:
    """Count the tokens of a request's prompt."""
    service = service_of(request)
    body = await service.read(request, InputTokensBody)
    engine = service.ready(body.model).engine
    context = state_of(request).context(body.previous_response_id, body.input)

    def encode() -> list[int]:
        return body.chat_request(context).prompt(engine.model, engine.context_length)

    tokens = await asyncio.to_thread(encode)
    return json_response({"object": "response.input_tokens", "input_tokens": len(tokens)})
