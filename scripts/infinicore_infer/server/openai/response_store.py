"""Responses that clients may ask for again, or go on from: in memory, bounded by bytes and time.

A response's items are a turn, and turns are linked to those that they follow, so that a long
conversation is in memory once, however many of its responses are stored. A turn stays while a
response is stored that it belongs to or that follows it. Belongs to one event loop.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from infinicore_infer.server.json_values import JsonObject, from_json, to_json
from infinicore_infer.server.openai.response_files import ResponseFile, ResponseFolder

# What a response takes besides its texts.
_OVERHEAD = 2048


@dataclass(slots=True, eq=False)
class Turn:
    """The items of a response: what the client sent, and the answer.

    Attributes:
        id: The response's.
        inputs: The items that the client sent, as JSON.
        outputs: Those of the answer, as JSON.
        parent: The turn that it follows.
        item_ids: The ids of all items.
        users: How many stored responses and turns need it.
    """

    id: str
    inputs: str
    outputs: str
    parent: Turn | None
    item_ids: tuple[str, ...]
    users: int = 0

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return text_bytes(self.inputs, self.outputs) + _OVERHEAD

    def items(self) -> Iterator[JsonObject]:
        """Yield its items."""
        for text in (self.inputs, self.outputs):
            yield from objects(text)


def text_bytes(*texts: str) -> int:
    """Return how much memory texts take, whose characters may be of several bytes."""
    return sum(map(sys.getsizeof, texts))


def ids_of(items: Iterable[JsonObject]) -> tuple[str, ...]:
    """Return the ids of items that have one."""
    return tuple(str(item["id"]) for item in items if "id" in item)


def objects(text: str) -> list[JsonObject]:
    """Return the objects of a JSON list."""
    values = from_json(text)
    return (
        [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
    )


def history(turn: Turn | None) -> list[JsonObject]:
    """Return the items of a conversation up to a turn, the oldest first."""
    turns = []
    while turn is not None:
        turns.append(turn)
        turn = turn.parent
    return [item for turn in reversed(turns) for item in turn.items()]


@dataclass(slots=True, eq=False)
class Stored:
    """A stored response.

    Attributes:
        turn: Its items.
        response: It, as JSON.
        events: Those of its stream, as JSON, if it may be streamed again.
        created: When it was stored, in seconds since the epoch.
    """

    turn: Turn
    response: str
    events: Sequence[str]
    created: float

    async def follow(self, after: int) -> AsyncGenerator[JsonObject | None, None]:
        """Yield the events of its stream behind one.

        Args:
            after: The event's number; -1: all.
        """
        for text in self.events[after + 1 :]:
            value = from_json(text)
            assert isinstance(value, dict)
            yield value

    @property
    def size(self) -> int:
        """About how many bytes it takes, without its turn."""
        return text_bytes(self.response, *self.events) + _OVERHEAD


class ResponseStore:
    """The responses that are stored; the oldest go first.

    Attributes:
        size: About how many bytes they take.
    """

    def __init__(
        self,
        limit_bytes: int,
        seconds: float,
        folder: ResponseFolder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin with none.

        Args:
            limit_bytes: Most bytes; 0: nothing is stored.
            seconds: How long each stays.
            folder: Where they are kept for the next start; ``None``: nowhere.
            clock: Tells the time in seconds since the epoch.
        """
        self._limit = limit_bytes
        self._seconds = seconds
        self._folder = folder
        self._clock = clock
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        # By an item's id, the response that has it.
        self._owners: dict[str, str] = {}
        self.size = 0

    @property
    def enabled(self) -> bool:
        """Whether anything is stored."""
        return self._limit > 0

    @property
    def full(self) -> bool:
        """Whether those that are being made take all there is."""
        return self.size > self._limit

    def load(self) -> None:
        """Take what the folder has of earlier starts."""
        if self._folder is None:
            return
        files = {file.id: file for file in self._folder.read()}
        turns: dict[str, Turn] = {}
        for file in sorted(files.values(), key=lambda file: file.created):
            if file.parent is not None and file.parent not in turns:
                self._folder.skip(file.id, f"what it follows, {file.parent}, is not there")
                continue
            parent = None if file.parent is None else turns[file.parent]
            ids = ids_of((*objects(file.inputs), *objects(file.outputs)))
            turns[file.id] = Turn(file.id, file.inputs, file.outputs, parent, ids)
            if file.response is not None:
                self._insert(turns[file.id], file.response, (), file.created)
        for turn in turns.values():
            if not turn.users:
                self._folder.remove(turn.id)
        self._trim()

    def close(self) -> None:
        """Wait until everything is written."""
        if self._folder is not None:
            self._folder.close()

    def find(self, identity: str) -> Stored | None:
        """Return a response, unless its time is over."""
        self._trim()
        return self._stored.get(identity)

    def turn_with(self, item_id: str) -> Turn | None:
        """Return the turn that has an item."""
        owner = self._owners.get(item_id)
        found = None if owner is None else self.find(owner)
        return None if found is None else found.turn

    def put(self, turn: Turn, response: JsonObject, events: Sequence[str] = ()) -> None:
        """Store a response; what is older goes where there is no room.

        Args:
            turn: Its items.
            response: It.
            events: Those of its stream, as JSON.
        """
        text = to_json(response)
        if not self.enabled or text_bytes(text) + turn.size > self._limit:
            return
        created = self._clock()
        self._insert(turn, text, events, created)
        if self._folder is not None:
            parent = None if turn.parent is None else turn.parent.id
            self._folder.write(
                ResponseFile(turn.id, created, parent, turn.inputs, turn.outputs, text)
            )
        self._trim()

    def remove(self, identity: str) -> bool:
        """Forget a response; return whether it was there."""
        self._trim()
        if identity not in self._stored:
            return False
        self._forget(identity)
        return True

    def _forget(self, identity: str) -> None:
        stored = self._stored.pop(identity)
        for item_id in stored.turn.item_ids:
            if self._owners.get(item_id) == identity:
                del self._owners[item_id]
        self.size -= stored.size
        if self._folder is not None and stored.turn.users > 1:
            # Others follow it.
            turn = stored.turn
            parent = None if turn.parent is None else turn.parent.id
            self._folder.write(
                ResponseFile(turn.id, stored.created, parent, turn.inputs, turn.outputs, None)
            )
        self._release(stored.turn)

    def reserve(self, count: int) -> None:
        """Count bytes of a response that is being made; a negative number counts them no more."""
        self.size += count
        self._trim()

    def _insert(self, turn: Turn, response: str, events: Sequence[str], created: float) -> None:
        stored = Stored(turn, response, events, created)
        self._stored[turn.id] = stored
        self._owners.update(dict.fromkeys(turn.item_ids, turn.id))
        self.size += stored.size
        held: Turn | None = turn
        while held is not None:
            held.users += 1
            if held.users > 1:
                break
            self.size += held.size
            held = held.parent

    def _release(self, turn: Turn | None) -> None:
        """Need a turn no more; those that nobody needs go, with what they follow."""
        while turn is not None:
            turn.users -= 1
            if turn.users:
                return
            self.size -= turn.size
            if self._folder is not None:
                self._folder.remove(turn.id)
            turn = turn.parent

    def _trim(self) -> None:
        """Forget what is too old, and the oldest while all take too much."""
        oldest = self._clock() - self._seconds
        while self._stored:
            identity, first = next(iter(self._stored.items()))
            if first.created >= oldest and self.size <= self._limit:
                return
            self._forget(identity)
