"""A client of OpenAI-compatible servers for load tools, from the standard library alone.

It notes when every chunk of a stream comes, and can leave in the middle.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Answer:
    """What came of one request.

    Attributes:
        seconds: From sending the request to the end.
        text: All text, thinking included.
        times: When each chunk with text came, in seconds since sending.
        usage: The server's own count, if it sent one.
        error: What went wrong, or "".
        cancelled: Whether this client left.
    """

    seconds: float = 0.0
    text: str = ""
    times: list[float] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    error: str = ""
    cancelled: bool = False

    @property
    def tokens(self) -> int:
        """Generated tokens: as the server counts, else the chunks."""
        if self.usage and "completion_tokens" in self.usage:
            return int(self.usage["completion_tokens"])
        return len(self.times)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the server did not have to compute, as far as it says."""
        details = (self.usage or {}).get("prompt_tokens_details") or {}
        return int(details.get("cached_tokens") or 0)


class ServingClient:
    """Sends requests to one server. May be shared by threads: each request has its connection."""

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        """Store where requests go.

        Args:
            url: With or without "/v1" at the end.
            api_key: Sent as a bearer token.
            timeout: Seconds of silence after which a request has failed.

        Raises:
            ValueError: The URL is none of HTTP.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http:// or https:// address")
        self._parts = parts
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def _connect(self) -> http.client.HTTPConnection:
        kind = (
            http.client.HTTPSConnection
            if self._parts.scheme == "https"
            else http.client.HTTPConnection
        )
        assert self._parts.hostname is not None
        return kind(self._parts.hostname, self._parts.port, timeout=self._timeout)

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a GET request.

        Raises:
            OSError: There is no connection.
        """
        connection = self._connect()
        try:
            connection.request("GET", self._base + path, headers=self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def model(self) -> str:
        """Return the name of the first model of /v1/models.

        Raises:
            OSError: There is no connection, or the server has no model.
        """
        status, data = self.get("/v1/models")
        try:
            return str(json.loads(data)["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise OSError(f"/v1/models answers {status}: {data[:200]!r}") from None

    def stream(
        self,
        path: str,
        body: Mapping[str, Any],
        leave_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request with ``stream`` and read the answer; failures are in ``error``.

        Args:
            path: Such as "/v1/completions".
            body: The request; stream and stream_options are added.
            leave_after: Hang up after this many chunks.
            headers: Further ones.
        """
        answer = Answer()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        all_headers = {**self._headers, **(headers or {})}
        begin = time.perf_counter()
        connection = self._connect()
        try:
            data = json.dumps({**body, **options})
            connection.request("POST", self._base + path, data, all_headers)
            if leave_after == 0:
                answer.cancelled = True
                return answer
            response = connection.getresponse()
            if response.status != 200:
                answer.error = f"status {response.status}: {response.read()[:300]!r}"
                return answer
            ended = False
            while not ended and (line := response.readline()):
                ended = self._event(line, answer, begin)
                if leave_after is not None and len(answer.times) >= leave_after:
                    answer.cancelled = True
                    return answer
            if not ended and not answer.error:
                answer.error = "the stream ended without [DONE]"
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
            answer.seconds = time.perf_counter() - begin
        return answer

    @staticmethod
    def _event(line: bytes, answer: Answer, begin: float) -> bool:
        """Take a line of the stream; return whether it is the last one."""
        if not line.startswith(b"data:"):
            return False
        data = line[5:].strip()
        if data == b"[DONE]":
            return True
        chunk = json.loads(data)
        if chunk.get("error"):
            answer.error = str(chunk["error"])
        answer.usage = chunk.get("usage") or answer.usage
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content") or delta.get("reasoning_content")
            if text:
                answer.text += text
                answer.times.append(time.perf_counter() - begin)
        return False
