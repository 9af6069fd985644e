"""What all endpoints share: the loaded model, whether it is ready, and following its answers."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from libinfinicore_infer import load_library
from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.engine.async_engine import AsyncEngine, AsyncStream
from infinicore_infer.engine.engine import Engine
from infinicore_infer.engine.jobs import Submission, Update
from infinicore_infer.errors import FieldError
from infinicore_infer.generate.grammar import Grammars
from infinicore_infer.server.chat_request import checked_variables
from infinicore_infer.server.errors import ApiError, no_such_model, unavailable
from infinicore_infer.server.fields import Body
from infinicore_infer.server.http import EventStream, StreamForm, json_response, unless_disconnected
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.metrics import Metrics
from infinicore_infer.server.reading import IgnoredNames, read_fields

_LOG = logging.getLogger("infinicore_infer.server")
_BodyType = TypeVar("_BodyType", bound=Body)
# Of a name that any-name mode takes: answers repeat it, in streams with every event.
_LONGEST_NAME = 256


def _report_templates(model: Qwen3ForCausalLM) -> None:
    """Say in the log which chat templates are damaged; what needs none works without them."""
    problems = model.tokenizer.templates.problems()
    default = problems.pop("default", None)
    for problem in problems.values():
        _LOG.warning("requests that need this chat template will fail: %s", problem)
    if default is None and "default" in model.tokenizer.templates.sources:
        try:
            model.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
        except ValueError as error:
            default = str(error)
    if default is not None:
        _LOG.error("chats will fail, /v1/completions works: %s", default)


class Writer(Protocol):
    """Writes an answer in a protocol's form, whole or as events, from what the engine tells."""

    @property
    def form(self) -> StreamForm:
        """How the events are written."""

    def begin(self) -> Sequence[JsonObject]:
        """Return the events before the first token."""

    def push(self, index: int, update: Update) -> Sequence[JsonObject]:
        """Take news of one of the answers; return the events it brings."""

    def finish(self) -> Sequence[JsonObject]:
        """Return the events after the last token."""

    def take(self, index: int, update: Update) -> object:
        """Take news of an answer that is sent whole."""

    def whole(self) -> JsonObject:
        """Return the answer that is sent whole; all news is there."""


@dataclass(slots=True)
class ServiceConfig:
    """Settings of the server.

    Attributes:
        model_name: What the model is called where a request names none.
        aliases: Further names of it.
        any_model_name: Whether it answers to every name.
        chat_template: File with the chat template; ``None``: the checkpoint's.
        template_variables: What chat templates see where a request does not say otherwise.
        api_key: What clients must send; ``None``: nothing.
        max_body_bytes: Longest request.
        request_timeout: Seconds after which a request is given up; ``None``: never.
        ping_seconds: Silence after which a stream sends a comment, so that nobody hangs up.
        hosts: Names by which clients may call the server, besides localhost and addresses, in lower
            case; ``None``: any.
        response_bytes: Most bytes of stored responses; 0: none is stored.
        response_seconds: How long each is stored.
        response_dir: Folder that they are kept in for the next start; ``None``: none is kept.
        unknown_fields: Whether fields of requests that no table knows are named in a header and in
            the log, or refused.
    """

    model_name: str
    aliases: Sequence[str] = ()
    any_model_name: bool = False
    chat_template: Path | None = None
    template_variables: JsonObject = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 16 << 20
    request_timeout: float | None = None
    ping_seconds: float = 15.0
    hosts: frozenset[str] | None = None
    response_bytes: int = 64 << 20
    response_seconds: float = 24 * 3600.0
    response_dir: Path | None = None
    unknown_fields: Literal["warn", "refuse"] = "warn"

    @property
    def names(self) -> list[str]:
        """All names of the model, each once."""
        return list(dict.fromkeys((self.model_name, *self.aliases)))

    def is_served(self, name: str) -> bool:
        """Return whether the model answers to a name.

        A tag "latest" makes no other: Ollama's clients find names with it, and some of them go on
        with OpenAI's protocol.
        """
        known = name in self.names or name.removesuffix(":latest") in self.names
        return known or (self.any_model_name and 0 < len(name) <= _LONGEST_NAME)


@dataclass
class Service:
    """The state behind the endpoints.

    Attributes:
        config: Settings.
        metrics: Numbers.
        grammars: Compiles schemas.
        async_engine: Set once the model is loaded.
        draining: Whether the server is shutting down.
        created: When it started, in seconds since the epoch.
    """

    config: ServiceConfig
    metrics: Metrics = field(default_factory=Metrics)
    grammars: Grammars = field(default_factory=Grammars)
    async_engine: AsyncEngine | None = None
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    _ignored_names: IgnoredNames = field(default_factory=IgnoredNames)

    def attach(self, engine: Engine) -> None:
        """Begin to serve. Takes a second or two, for grammars of a large vocabulary.

        Raises:
            ValueError: The chat template of the configuration is damaged.
            OSError: It cannot be read.
        """
        if engine.model.has_tokenizer:
            templates = engine.model.tokenizer.templates
            if self.config.chat_template is not None:
                templates.replace(self.config.chat_template)
            templates.defaults = checked_variables(self.config.template_variables)
        self.grammars.attach(engine.model)
        self.metrics.watch(lambda: engine.stats)
        if engine.model.has_tokenizer:
            _report_templates(engine.model)
        self.async_engine = AsyncEngine(engine)

    def ready(self, model: str | None = None) -> AsyncEngine:
        """Return the engine, for a request that has just come.

        Args:
            model: The model that the request named.

        Raises:
            ApiError: It is loading or draining, or another model is wanted.
        """
        if self.draining:
            raise unavailable("the server is shutting down", "draining")
        if self.async_engine is None:
            raise unavailable("the model is being loaded", "loading")
        if model is not None and not self.config.is_served(model):
            raise no_such_model(model, self.config.names)
        return self.async_engine

    def called(self, model: str | None) -> str:
        """Return the name that an answer gives the model: the one that the request used."""
        return self.config.model_name if model is None else model

    @property
    def engine(self) -> AsyncEngine:
        """The engine, which must be there; also while draining."""
        assert self.async_engine is not None
        return self.async_engine

    @property
    def model(self) -> Qwen3ForCausalLM:
        """The loaded model."""
        return self.engine.engine.model

    @cached_property
    def fingerprint(self) -> str:
        """OpenAI's name for what may change the tokens of a seed: the model, this library."""
        meta = self.model.meta
        shape = f"{meta.nlayer} {meta.d} {meta.dvoc}"
        what = f"{self.config.model_name} {shape} {load_library().qwen3Version()!r}"
        return f"fp_{hashlib.sha256(what.encode()).hexdigest()[:10]}"

    @property
    def retry_after(self) -> int:
        """Seconds after which a place in the queue is likely to be free."""
        return 1 if self.async_engine is None else self.async_engine.engine.retry_after

    async def read(self, request: Request, kind: type[_BodyType]) -> _BodyType:
        """Read a request and see that none of its fields vanishes silently.

        The names of those that no table knows go to ``request.state.ignored_fields``, from which
        they get into the response's header ``X-Ignored-Fields``, and into the log, each name once.

        Args:
            request: The request.
            kind: Its fields.

        Raises:
            ApiError: It is too long, compressed, or not JSON, or it has a field that would change
                the answer if it were obeyed; where unknown fields are refused, one of these.
            pydantic.ValidationError: A field is wrong.
        """
        body, ignored = await read_fields(request, kind, self.config.max_body_bytes)
        if ignored and self.config.unknown_fields == "refuse":
            message = f"{ignored[0][:100]!r} is nothing that this server knows or serves"
            raise ApiError(400, message, ignored[0], "unknown_parameter")
        request.state.ignored_fields = ignored
        self._ignored_names.log(ignored, kind.endpoint)
        return body

    def submit(self, submissions: Sequence[Submission]) -> AsyncStream:
        """Queue prompts, all or none, with the server's timeout.

        Raises:
            FieldError: They are more than the queue ever holds.
            ValueError: A prompt does not fit.
            EngineError: There is no room now, or the engine is draining.
        """
        config = self.engine.engine.config
        room = config.max_batch + config.max_queue
        count = sum(len(submission.params) for submission in submissions)
        if count > room:
            # Not 429: it would be the same at any time.
            name = "n" if count > len(submissions) else "prompt"
            raise FieldError(name, f"{count} answers at once; this server takes {room}")
        timeout = self.config.request_timeout
        return self.engine.submit([replace(each, timeout=timeout) for each in submissions])

    async def follow(self, stream: AsyncStream) -> AsyncGenerator[tuple[int, Update] | None, None]:
        """Yield an answer's updates; cancel it at the end, whatever ends it.

        ``None`` says that nothing more is here now, and again after every while of silence.
        """
        last: dict[int, float] = {}
        told = False
        begin = time.monotonic()
        try:
            while True:
                # Not wait_for: before Python 3.12 it forgets a cancellation when an update comes at
                # the same moment, and the answer would go on for a client that has left.
                while not stream.pending and not stream.ended:
                    if not told:
                        told = True
                        yield None
                        continue
                    ready = asyncio.ensure_future(stream.wait())
                    try:
                        done, _ = await asyncio.wait({ready}, timeout=self.config.ping_seconds)
                    finally:
                        ready.cancel()
                    if not done:
                        yield None
                try:
                    index, update = await anext(stream)
                except StopAsyncIteration:
                    return
                if update.piece is not None:
                    now = time.monotonic()
                    if index in last:
                        self.metrics.between_tokens.observe(now - last[index])
                    else:
                        self.metrics.first_token.observe(now - begin)
                    last[index] = now
                told = False
                yield index, update
        finally:
            self.engine.cancel(stream)

    async def events(
        self, stream: AsyncStream, writer: Writer
    ) -> AsyncGenerator[JsonObject | None, None]:
        """Yield the events of an answer; ``None`` as :meth:`follow` does."""
        begun = False
        async with aclosing(self.follow(stream)) as updates:
            async for item in updates:
                if not begun:
                    begun = True
                    for event in writer.begin():
                        yield event
                if item is None:
                    yield None
                    continue
                for event in writer.push(*item):
                    yield event
        for event in writer.finish():
            yield event

    async def _collect(self, stream: AsyncStream, take: Callable[[int, Update], object]) -> None:
        async with aclosing(self.follow(stream)) as updates:
            async for item in updates:
                if item is not None:
                    take(*item)

    async def answer(
        self, request: Request, stream: AsyncStream, writer: Writer, *, streamed: bool
    ) -> Response:
        """Return the response to a request whose prompts have been queued.

        Args:
            request: The request.
            stream: Brings the answers.
            writer: Puts them into the protocol's form.
            streamed: Whether the client wants events; otherwise it gets the whole, at the end.

        Raises:
            ClientDisconnect: The client left before the end.
            EngineError: An answer failed, and there are no events to tell it in.
        """
        if streamed:
            events = self.events(stream, writer)
            # The first one is there already. From here on somebody follows the answers, so they are
            # cancelled even if the response is never sent.
            return EventStream(events, writer.form, [await anext(events)])
        await unless_disconnected(request, self._collect(stream, writer.take))
        return json_response(writer.whole())


def service_of(request: Request) -> Service:
    """Return the state behind the application that a request came to."""
    service: Service = request.app.state.service
    return service
