"""States how long the worst requests within the limits hold everybody else up.

    python test/bench/stalls.py [--only numbers floats ...] [--json FILE] [-- --max-body 16M ...]

Starts scripts/launch_server.py with the demo model in a context of 40960 tokens. Each bad request
is sent while an answer is streamed and /health is asked again and again. Prints, for each, the
status, how long it took, and of /health and of the gaps between the stream's events p50, p99 and
the worst, in milliseconds. What is above 100 ms is marked; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from soak import launch

ROOT = Path(__file__).resolve().parents[2]
_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
# Has the prompt rendered and encoded, and nothing computed.
_COUNT = "/v1/messages/count_tokens"
_CONTEXT = 40960
_LIMIT = 100.0
# Most bytes of a body, but for its ends.
_SIZE = (16 << 20) - 4096
Case = tuple[str, bytes]


def _repeated(begin: str, item: str, count: int, end: str, between: str = ",") -> bytes:
    return (begin + between.join([item] * count) + end).encode()


def _chat(text: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()


def _many(begin: str, item: str, end: str) -> Callable[[int], bytes]:
    """Return what makes a body of so many equal items, as many as the limit of bytes allows."""
    return lambda count: _repeated(begin, item, min(count, _SIZE // (len(item) + 1)), end)


def _keys(count: int) -> bytes:
    names = ",".join(f'"k{i}":0' for i in range(min(count, _SIZE // 12)))
    return f'{{"prompt":"x",{names}}}'.encode()


def _schema(schema: Any) -> bytes:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "temperature": 0}
    return json.dumps({**body, "response_format": form}).encode()


def _tools(count: int) -> bytes:
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "strict": True, "parameters": {
            "type": "object", "properties": {f"a{i}": {"type": "string"}}}}}
        for i in range(count)
    ]  # fmt: skip
    messages = [{"role": "user", "content": "x"}]
    return json.dumps({"messages": messages, "max_tokens": 8, "tools": tools}).encode()


def cases(values: int) -> dict[str, Case]:
    """Return the bad requests.

    Args:
        values: How many lists and objects the server takes; of plain values four times as many.
    """
    message = '{"role":"user","content":"a"}'
    said = {"messages": [{"role": "user", "content": "a"}]}
    brief = {"max_output_tokens": 1, "temperature": 0}
    properties = {f"p{i}": {"type": "string", "maxLength": 50} for i in range(1000)}
    lists: dict[str, Case] = {
        "one long text": (_CHAT, _chat("a" * _SIZE)),
        "text without ASCII": (_CHAT, _chat("ä" * (_SIZE // 6))),
        "raw text without ASCII": (_TEXT, ('{"prompt":"' + "語" * (_SIZE // 3) + '"}').encode()),
        "text that nearly fits": (_COUNT, _chat("hello " * (_CONTEXT - 100))),
        "text of the usual bytes": (_COUNT, _chat("Zz9 <|im_" * (_CONTEXT * 8 // 9))),
        "control tokens that fit": (_COUNT, _chat("<|im_end|>" * (_CONTEXT // 10))),
        "spaces in JSON": (_TEXT, b'{"prompt":' + b" " * _SIZE + b"1}"),
        "one long number": (_TEXT, b'{"prompt":1.' + b"1" * _SIZE + b"}"),
        "deep lists": (_TEXT, b'{"prompt":' + b"[" * (_SIZE // 2) + b"]" * (_SIZE // 2) + b"}"),
        "only commas": (_TEXT, b'{"prompt":[' + b"," * _SIZE + b"]}"),
        "many unknown fields": (_TEXT, _keys(values)),
        "long name of a model": (
            _CHAT,
            json.dumps({"model": "\x00é" * (_SIZE // 12), **said}).encode(),
        ),
        "long role": (_CHAT, json.dumps({"messages": [{"role": "é" * (_SIZE // 6)}]}).encode()),
        "long metadata": (
            "/v1/responses",
            json.dumps({"input": "x", **brief, "metadata": {"a": "é" * (_SIZE // 6)}}).encode(),
        ),
        "long tool not served": (
            "/v1/responses",
            json.dumps(
                {"input": "x", **brief, "tools": [{"type": "mcp", "a": "é" * (_SIZE // 6)}]}
            ).encode(),
        ),
        "small pattern": (_CHAT, _schema({"type": "string", "pattern": "^(a{1,99}){1,99}$"})),
        "1000 properties": (_CHAT, _schema({"type": "object", "properties": properties})),
        "nested quantifiers": (_CHAT, _schema({"type": "string", "pattern": "(x+x+)+y" * 50})),
        "1000 strict tools": (_CHAT, _tools(1000)),
    }
    many = {
        "numbers": (_TEXT, '{"prompt":[', "1", "]}"),
        "long numbers": (_TEXT, '{"prompt":[', "1234567", "]}"),
        "floats": (_TEXT, '{"prompt":[', "1.5", "]}"),
        "texts": (_TEXT, '{"prompt":[', '"a"', "]}"),
        "lists": (_TEXT, '{"prompt":[', "[1]", "]}"),
        "objects": (_CHAT, '{"messages":[', '{"a":{}}', "]}"),
        "messages": (_CHAT, '{"messages":[', message, "]}"),
        "items": ("/v1/responses", '{"input":[', message, "]}"),
        "blocks": ("/v1/messages", '{"max_tokens":1,"messages":[', message, "]}"),
        "stop tokens": (_TEXT, '{"prompt":"x","stop_token_ids":[', "1", "]}"),
        "tools": (_CHAT, f'{{"messages":[{message}],"tools":[', '{"type":"function"}', "]}"),
        "served elsewhere": (_CHAT, f'{{"messages":[{message}],"tools":[', '{"type":"mcp"}', "]}"),
        "ids": ("/detokenize", '{"tokens":[', "1", "]}"),
    }
    for name, (path, begin, item, end) in many.items():
        containers = item.count("{") + item.count("[")
        count = (values - 8) // containers if containers else 4 * values - 8
        lists[name] = (path, _many(begin, item, end)(count))
    return lists


class Watch:
    """A stream and /health, watched while something else is sent."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._stop = threading.Event()
        self._begun = threading.Event()
        self.health: list[float] = []
        self.gaps: list[float] = []

    def _ask(self) -> None:
        connection = HTTPConnection(self._host, timeout=120)
        while not self._stop.is_set():
            begin = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self.health.append(1e3 * (time.perf_counter() - begin))
            time.sleep(0.002)
        connection.close()

    def _read(self) -> None:
        connection = HTTPConnection(self._host, timeout=120)
        story = [{"role": "user", "content": "Tell me a story."}]
        body = {"messages": story, "max_tokens": 30000, "stream": True, "ignore_eos": True}
        connection.request("POST", _CHAT, json.dumps(body))
        response = connection.getresponse()
        last = 0.0
        while not self._stop.is_set() and response.readline():
            now = time.perf_counter()
            if last:
                self.gaps.append(1e3 * (now - last))
            last = now
            self._begun.set()
        connection.close()

    def during(self, work: Callable[[], int]) -> tuple[int, float]:
        """Do something; return its status and how many seconds it took."""
        threads = [threading.Thread(target=each) for each in (self._ask, self._read)]
        for thread in threads:
            thread.start()
        self._begun.wait(60)
        time.sleep(0.3)
        self.health.clear()
        self.gaps.clear()
        begin = time.perf_counter()
        status = work()
        seconds = time.perf_counter() - begin
        # What is thrown away afterwards takes its time too.
        time.sleep(0.3)
        self._stop.set()
        for thread in threads:
            thread.join()
        return status, seconds


def _send(url: str, case: Case) -> int:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=300)
    connection.request("POST", *case, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def _numbers(times: list[float]) -> list[float]:
    ordered = sorted(times)
    return [ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], ordered[-1]]


def measure(url: str, wanted: dict[str, Case]) -> dict[str, Any]:
    """Send each request and print a row for it; return them."""
    print(f"{'':26}status seconds   /health p50, p99, worst   stream p50, p99, worst [ms]")
    rows = {}
    for name, case in wanted.items():
        watch = Watch(url)
        status, seconds = watch.during(lambda case=case: _send(url, case))
        health, stream = _numbers(watch.health), _numbers(watch.gaps)
        rows[name] = {"status": status, "seconds": seconds, "health": health, "stream": stream}
        times = "  ".join("{:8.1f}{:8.1f}{:8.1f}".format(*each) for each in (health, stream))
        mark = "  <--" if max(health[2], stream[2]) > _LIMIT else ""
        print(f"{name:26}{status:6}{seconds:8.2f}{times}{mark}", flush=True)
    return rows


def _long_model(folder: Path) -> None:
    """Make the demo model's folder again, with a longer context."""
    source = ROOT / "test" / "data" / "qwen3-tiny"
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = _CONTEXT
    (folder / "config.json").write_text(json.dumps(config))


def main() -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of requests, or their beginnings")
    parser.add_argument("--values", type=int, default=1 << 16, help="objects of a request")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("server", nargs="*", help="further options of launch_server.py, after --")
    args = parser.parse_args()
    wanted = {
        name: case
        for name, case in cases(args.values).items()
        if not args.only or name.startswith(tuple(args.only))
    }
    if args.url:
        rows = measure(args.url, wanted)
    else:
        with tempfile.TemporaryDirectory() as folder:
            _long_model(Path(folder))
            options = ["--model-path", folder, "--threads", "1"]
            server, url = launch([*options, *args.server], Path(folder) / "log")
            try:
                rows = measure(url, wanted)
            finally:
                server.terminate()
                server.wait()
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    worst = max(max(row["health"][2], row["stream"][2]) for row in rows.values())
    print(f"worst: {worst:.0f} ms")
    return int(worst > _LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
