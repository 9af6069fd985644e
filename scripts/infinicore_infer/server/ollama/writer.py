"""Answers in Ollama's form: lines of JSON, or one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from infinicore_infer.engine.jobs import Update
from infinicore_infer.server.answer import Answer
from infinicore_infer.server.counts import count, spans
from infinicore_infer.server.http import StreamForm
from infinicore_infer.server.json_values import JsonObject, call_object
from infinicore_infer.server.logprobs import chat_logprobs
from infinicore_infer.server.ollama.errors import OLLAMA_STREAM
from infinicore_infer.text.output import Arguments, Call, Part, Reasoning
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


@dataclass(slots=True)
class Text:
    """A part of an answer, or all of it."""

    content: str = ""
    thinking: str = ""
    calls: list[JsonObject] = field(default_factory=list)

    def __iadd__(self, other: Text) -> Text:
        """Add what follows."""
        self.content += other.content
        self.thinking += other.thinking
        self.calls += other.calls
        return self


def as_message(text: Text) -> JsonObject:
    """Return what /api/chat has of a text."""
    message: JsonObject = {"role": "assistant", "content": text.content}
    if text.thinking:
        message["thinking"] = text.thinking
    if text.calls:
        message["tool_calls"] = text.calls
    return {"message": message}


def as_response(text: Text) -> JsonObject:
    """Return what /api/generate has of a text."""
    thinking = {"thinking": text.thinking} if text.thinking else {}
    return {"response": text.content, **thinking}


def rfc3339(when: datetime | None = None) -> str:
    """Return a time, or now, as Ollama writes it."""
    when = datetime.now(timezone.utc) if when is None else when
    return when.isoformat().replace("+00:00", "Z")


def loaded(model: str, form: Callable[[Text], JsonObject]) -> JsonObject:
    """Return the answer to a request that only wants the model loaded, which it is."""
    head: JsonObject = {"model": model, "created_at": rfc3339()}
    return {**head, **form(Text()), "done": True, "done_reason": "load"}


class OllamaWriter:
    """Writes answers of /api/chat and /api/generate."""

    form: StreamForm = OLLAMA_STREAM

    def __init__(
        self,
        model: str,
        answer: Answer,
        text_form: Callable[[Text], JsonObject],
        tokenizer: Qwen3Tokenizer,
        *,
        top_logprobs: bool,
    ) -> None:
        """Write the answer to a request.

        Args:
            model: The name that the client uses.
            answer: The answer.
            text_form: What the endpoint has of a text.
            tokenizer: The model's.
            top_logprobs: Whether log-probabilities, if there are any, have the likeliest tokens.
        """
        self._model = model
        self._answer = answer
        self._form = text_form
        self._tokenizer = tokenizer
        self._top_logprobs = top_logprobs
        self._whole = Text()
        self._logprobs: list[JsonObject] = []
        # The call that is being written.
        self._call: Call | None = None
        self._arguments = ""

    def begin(self) -> list[JsonObject]:
        """Return the lines before the first token: none."""
        return []

    def push(self, index: int, update: Update) -> list[JsonObject]:
        """Take news of the answer; return the lines it brings."""
        lines = []
        for text in self._texts(update):
            lines.append(self._line(text, self._scores()))
        if update.done:
            lines.append({**self._line(Text(), self._scores()), **self._end()})
        return lines

    def finish(self) -> list[JsonObject]:
        """Return the lines after the last token: none, the last one was the answer's end."""
        return []

    def take(self, index: int, update: Update) -> None:
        """Take news of an answer that is sent whole."""
        for text in self._texts(update):
            self._whole += text
        self._logprobs += self._scores()

    def whole(self) -> JsonObject:
        """Return the answer."""
        return {**self._line(self._whole, self._logprobs), **self._end()}

    def _texts(self, update: Update) -> list[Text]:
        """Return what an update brings; a call comes when it is complete."""
        texts: list[Text] = []
        for part in self._answer.push(update):
            if isinstance(part, Arguments):
                self._arguments += part.text
                continue
            self._close(texts)
            if isinstance(part, Call):
                self._call = part
            else:
                texts.append(_text(part))
        if update.done:
            self._close(texts)
        return texts

    def _close(self, texts: list[Text]) -> None:
        """Hand out the call that is being written, if there is one."""
        if self._call is None:
            return
        function: JsonObject = {
            "name": self._call.name,
            "arguments": call_object(self._arguments),
        }
        texts.append(Text(calls=[{"id": self._call.id, "function": function}]))
        self._call, self._arguments = None, ""

    def _line(self, text: Text, scores: list[JsonObject]) -> JsonObject:
        head: JsonObject = {"model": self._model, "created_at": rfc3339()}
        line = {**head, **self._form(text), "done": False}
        return {**line, "logprobs": scores} if scores else line

    def _scores(self) -> list[JsonObject]:
        """Return the log-probabilities that came since the last call."""
        entries = [chat_logprobs(self._tokenizer, item) for item in self._answer.take_logprobs()]
        if not self._top_logprobs:
            for entry in entries:
                del entry["top_logprobs"]
        return entries

    def _end(self) -> JsonObject:
        """Return what the last line has besides; times in nanoseconds."""
        jobs = [self._answer.job]
        counts, took = count(jobs), spans(jobs)
        reason = self._answer.finish_reason
        queue, prompt, answer = (round(s * 1e9) for s in (took.queue, took.prompt, took.answer))
        return {
            "done": True,
            # Calls end an answer like any other.
            "done_reason": "stop" if reason == "tool_calls" else reason,
            "total_duration": queue + prompt + answer,
            # The model is always there, but its turn has to come.
            "load_duration": queue,
            "prompt_eval_count": counts.prompt,
            "prompt_eval_duration": prompt,
            "eval_count": counts.completion,
            "eval_duration": answer,
        }


def _text(part: Part) -> Text:
    assert not isinstance(part, Call | Arguments)
    return Text(thinking=part.text) if isinstance(part, Reasoning) else Text(part.text)
