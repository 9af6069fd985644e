"""Answers to conversations, in no protocol's form: what the model wrote, part by part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infinicore_infer.engine.async_engine import AsyncStream
from infinicore_infer.engine.jobs import Job, Update
from infinicore_infer.errors import FieldError, about
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.grammar import Grammar
from infinicore_infer.generate.results import TokenLogprobs
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.generate.thinking import limit_thinking
from infinicore_infer.native.model import token_list
from infinicore_infer.server.chat_request import ChatRequest
from infinicore_infer.server.counts import stop_reason
from infinicore_infer.server.grammar import choose_grammar
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.service import Service
from infinicore_infer.text.chat_template import check_messages
from infinicore_infer.text.output import Content, OutputParser, Part, Reasoning


class PlainText:
    """Reads an answer that is text and nothing else."""

    state = "content"
    calls = 0

    def push(self, text: str) -> list[Part]:
        """Take text and return it."""
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """Return the rest, of which there is none."""
        return []


@dataclass(slots=True)
class Answer:
    """One answer, as it grows.

    Attributes:
        job: It, in the engine.
        parser: Tells its parts apart.
        end_tokens: The model's own.
        hide_thinking: Whether the client does not want to see thinking.
        logprobs: Log-probabilities of tokens that nobody has taken yet, end tokens left out.
        tokens: Ids of tokens that nobody has taken yet, end tokens included.
        count: How many tokens it has.
        reasoning_tokens: How many of its tokens are thinking.
        finish_reason: Why it ended: ``"stop"``, ``"tool_calls"``, ``"length"`` or
            ``"repetition"``; ``None`` while it goes on.
        stop_reason: The stop string or token that ended it, as vLLM tells it.
    """

    job: Job
    parser: OutputParser | PlainText
    end_tokens: frozenset[int]
    hide_thinking: bool = False
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    count: int = 0
    reasoning_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def push(self, update: Update) -> list[Part]:
        """Take an update and return the parts it brings."""
        piece = update.piece
        if piece is None:
            return []
        self.count += 1
        self.tokens.append(piece.token)
        before = self.parser.state
        parts = self.parser.push(piece.text)
        thinking = "reasoning" in (before, self.parser.state)
        if thinking:
            self.reasoning_tokens += 1
        shown = not (thinking and self.hide_thinking) and piece.token not in self.end_tokens
        if piece.logprobs is not None and shown:
            self.logprobs.append(piece.logprobs)
        if update.done:
            parts += self.parser.finish()
            called = piece.finish_reason == "stop" and self.parser.calls
            self.finish_reason = "tool_calls" if called else piece.finish_reason
            self.stop_reason = stop_reason(self.job, self.end_tokens)
        if self.hide_thinking:
            return [part for part in parts if not isinstance(part, Reasoning)]
        return parts

    def take_logprobs(self) -> list[TokenLogprobs]:
        """Return the log-probabilities that came since the last call."""
        taken, self.logprobs = self.logprobs, []
        return taken

    def take_tokens(self) -> list[int]:
        """Return the ids of tokens that came since the last call."""
        taken, self.tokens = self.tokens, []
        return taken


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation on its way through the engine.

    Attributes:
        stream: Brings the updates.
        answers: What becomes of them.
        params: The settings of the first one.
    """

    stream: AsyncStream
    answers: list[Answer]
    params: SamplingParams

    @property
    def reasoning_tokens(self) -> int:
        """How many tokens of the answers are thinking."""
        return sum(answer.reasoning_tokens for answer in self.answers)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request, rendered and checked.

    Attributes:
        tokens: The prompt.
        params: The settings of every answer.
        opened: Whether the prompt has begun to think.
        amid: Whether it has thoughts already.
        may_think: Whether the answer may begin with thinking.
        written: The beginning of the answer, where the last message goes on.
        tools: Whether there are any to be called.
        grammar: What the answer must follow.
    """

    tokens: list[int]
    params: list[SamplingParams]
    opened: bool
    amid: bool
    may_think: bool
    written: str
    tools: bool
    grammar: Grammar | None


def _plan(service: Service, asked: Callable[[], ChatRequest]) -> tuple[ChatRequest, _Plan]:
    """Render, encode and check; takes a while for long conversations."""
    request = asked()
    model = service.model
    grammar = choose_grammar(request)
    tokens = request.prompt(model, service.engine.engine.context_length)
    check_length(service, tokens, "messages")
    written, amid = "", False
    if request.continued and _only_thinks(request.messages[-1]):
        opened = may_think = amid = True
    elif request.continued:
        # The text of an answer, unless its writer has begun to think in it.
        before, tag, rest = _last_text(request.messages).rpartition("</think>")
        opened = may_think = "<think>" in rest
        amid = bool(rest.rpartition("<think>")[2].strip()) and opened
        written = "" if opened else rest.lstrip() if tag else before + rest
    else:
        tail = model.tokenizer.decode(tokens[-4:], skip_special=False).rstrip()
        opened = tail.endswith("<think>")
        may_think = opened or not tail.endswith("</think>")
    offered = bool(request.offered_tools())
    params = request.sampling.params(model)
    return request, _Plan(tokens, params, opened, amid, may_think, written, offered, grammar)


def _only_thinks(message: JsonObject) -> bool:
    """Return whether a message, if it goes on, goes on thinking; as chat templates are given it."""
    return "content" not in check_messages([message], goes_on=True)[0]


def _last_text(messages: Sequence[JsonObject]) -> str:
    """Return the text of the last message, which has been rendered, so it has some."""
    content = messages[-1].get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def check_length(service: Service, tokens: list[int], field: str) -> None:
    """Refuse a prompt that leaves no room for an answer, or has tokens that the model lacks.

    Raises:
        FieldError: Naming the given field.
    """
    limit = service.engine.engine.context_length
    if not tokens:
        raise FieldError(field, "the prompt is empty")
    if len(tokens) > limit:
        problem = f"the prompt has {len(tokens)} tokens, the context holds {limit}"
        raise FieldError(field, problem, code="context_length_exceeded")
    with about(field):
        # A tokenizer may know more than the model.
        token_list(tokens, service.model.meta.dvoc)


async def _constraint(
    service: Service, request: ChatRequest, plan: _Plan
) -> Callable[[], Constraint] | None:
    """Return what makes the constraint of an answer, if there is any."""
    constraint = None
    if plan.grammar is not None:
        constraint = await service.grammars.prepare(
            plan.grammar,
            may_think=plan.may_think,
            thinking=plan.opened,
            written=plan.written,
        )
    budget, model = request.thinking.budget, service.model
    if (
        plan.opened
        and not request.continued
        and {**model.tokenizer.templates.defaults, **request.variables()}.get("enable_thinking")
        is False
    ):
        # The template does not know how to switch it off.
        budget = 0
    if budget is not None and plan.may_think:
        dvoc = model.meta.dvoc
        constraint = limit_thinking(model.tokenizer, dvoc, budget, plan.opened, constraint)
    return constraint


async def begin_chat(service: Service, asked: Callable[[], ChatRequest], name: str) -> Chat:
    """Check a request and hand it to the engine.

    Args:
        service: The state behind the endpoints.
        asked: Returns the request; called on another thread.
        name: For messages.

    Raises:
        FieldError: Something about the request is wrong.
        EngineError: There is no room now, or the engine is draining.
    """
    request, plan = await asyncio.to_thread(_plan, service, asked)
    model, sampling = service.model, request.sampling
    constraint = await _constraint(service, request, plan)
    stream = service.submit([sampling.submission(plan.tokens, plan.params, name, constraint)])
    max_calls = None if request.parallel_calls else 1
    answers = [
        Answer(
            job,
            OutputParser(
                thinking=plan.opened, amid=plan.amid, tools=plan.tools, max_calls=max_calls
            ),
            frozenset(model.meta.end_tokens),
            hide_thinking=request.thinking.hidden,
        )
        for job in stream.jobs
    ]
    return Chat(stream, answers, plan.params[0])
