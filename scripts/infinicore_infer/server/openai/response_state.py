"""What /v1/responses remembers: stored responses, and those that are being made."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from infinicore_infer.errors import FieldError
from infinicore_infer.server.errors import ApiError
from infinicore_infer.server.json_values import JsonObject, from_json, to_json
from infinicore_infer.server.openai.background import BackgroundRun
from infinicore_infer.server.openai.response_files import open_folder
from infinicore_infer.server.openai.response_store import (
    ResponseStore,
    Stored,
    Turn,
    history,
    ids_of,
    objects,
)
from infinicore_infer.server.service import ServiceConfig

# What an item is called by in its id, as OpenAI's are.
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


@dataclass(slots=True)
class Context:
    """What a request refers to.

    Attributes:
        parent: The turn that it follows.
        references: The turns that have the items that it refers to.
        inputs: The items that it sent, as JSON, to be stored.
        item_ids: Their ids.
    """

    parent: Turn | None = None
    references: Sequence[Turn] = ()
    inputs: str = "[]"
    item_ids: tuple[str, ...] = ()
    _items: dict[str, JsonObject] | None = None

    def before(self) -> list[JsonObject]:
        """Return the items of the conversation before the request; takes a while for long ones."""
        return history(self.parent)

    def resolved(self, item: JsonObject) -> JsonObject:
        """Return an item, or the stored one that it refers to; takes a while for long ones."""
        if item.get("type") != "item_reference":
            return item
        if self._items is None:
            found = (each for turn in self.references for each in turn.items() if "id" in each)
            self._items = {str(each["id"]): each for each in found}
        return self._items.get(str(item.get("id")), item)

    def take(self, given: str | Sequence[JsonObject]) -> None:
        """Take the items of the request, to be stored."""
        told: JsonObject = {"role": "user", "content": given}
        items = [told] if isinstance(given, str) else given
        listed = [_listed(self.resolved(item)) for item in items]
        self.inputs, self.item_ids = to_json(listed), ids_of(listed)


def _listed(item: JsonObject) -> JsonObject:
    """Return an item as it is stored and listed: with its type, an id, and parts."""
    kind = str(item.get("type", "message"))
    identity = item.get("id") or f"{_PREFIXES.get(kind, 'item')}_{secrets.token_hex(12)}"
    listed: JsonObject = {**item, "id": identity, "type": kind}
    if kind == "message" and isinstance(item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        listed["content"] = [{"type": part, "text": item["content"]}]
    return listed


class ResponseState:
    """All that is remembered. Belongs to one event loop.

    Attributes:
        store: Responses that are complete.
        live: By their ids, those in the background that are not.
    """

    def __init__(self, config: ServiceConfig) -> None:
        """Remember nothing yet.

        Args:
            config: How much, for how long, and where.

        Raises:
            OSError: The folder cannot be made or written to.
        """
        folder = None
        if config.response_dir is not None and config.response_bytes:
            folder = open_folder(config.response_dir)
        self.store = ResponseStore(config.response_bytes, config.response_seconds, folder)
        self.live: dict[str, BackgroundRun] = {}

    def context(self, previous: str | None, items: str | Iterable[JsonObject]) -> Context:
        """Return what a request refers to.

        Args:
            previous: The id of the response that it follows.
            items: Those that it sent.

        Raises:
            FieldError: Something is not there.
        """
        context = Context()
        if previous is not None:
            stored = self.store.find(previous)
            if stored is None:
                problem = f"{previous[:80]!r} {self._missing(previous)}"
                raise FieldError(
                    "previous_response_id", problem, code="previous_response_not_found"
                )
            context.parent = stored.turn
        turns: dict[str, Turn] = {}
        for item in () if isinstance(items, str) else items:
            identity = item.get("id")
            if item.get("type") == "item_reference" and isinstance(identity, str):
                turn = self.store.turn_with(identity)
                if turn is not None:
                    turns[turn.id] = turn
        context.references = list(turns.values())
        return context

    def _missing(self, identity: str) -> str:
        """Return why a response is not to be had."""
        if identity in self.live:
            return "is still in progress"
        if not self.store.enabled:
            return "is not stored: this server stores none (--response-memory)"
        return (
            "is not stored; responses are kept for a time, in bounded memory (--response-time, "
            "--response-memory)"
        )

    def found(self, identity: str) -> Stored | BackgroundRun:
        """Return a response.

        Raises:
            ApiError: There is none of that id.
        """
        found = self.live.get(identity) or self.store.find(identity)
        if found is None:
            message = f"response {identity[:80]!r} {self._missing(identity)}"
            raise ApiError(404, message, code="response_not_found")
        return found

    def keep(self, context: Context, response: JsonObject, events: Sequence[str] = ()) -> None:
        """Store a response.

        Args:
            context: What its request referred to.
            response: It.
            events: Those of its stream, if it may be streamed again.
        """
        outputs = to_json(response["output"])
        ids = (*context.item_ids, *ids_of(objects(outputs)))
        turn = Turn(str(response["id"]), context.inputs, outputs, context.parent, ids)
        self.store.put(turn, response, events)

    async def close(self) -> None:
        """End what is being made, and wait until everything is written."""
        await asyncio.gather(*(run.settle() for run in self.live.values()))
        await asyncio.to_thread(self.store.close)


def as_object(stored: Stored | BackgroundRun) -> JsonObject:
    """Return a response as it is now."""
    if isinstance(stored, BackgroundRun):
        return stored.response()
    value = from_json(stored.response)
    assert isinstance(value, dict)
    return value


def state_of(request: Request) -> ResponseState:
    """Return what is remembered behind the application that a request came to."""
    state: ResponseState = request.app.state.responses
    return state
