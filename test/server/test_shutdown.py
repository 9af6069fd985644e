"""The end of a busy server: what is in progress is finished, or ended when the time is over."""

from __future__ import annotations

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from qwen3 import Qwen3ForCausalLM
from test_launch import launched

USERS = 24
BATCH = 8
STEPS = 800  # enough that the first answers still go on when the last user has come


def stream(url: str, prompt: str, begun: threading.Semaphore, steps: int) -> tuple[str, list[Any]]:
    """Returns the text of a streamed answer and all events."""
    body = {
        "prompt": prompt,
        "max_tokens": steps,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    events: list[Any] = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: "):
                if not events:
                    begun.release()
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
    texts = [e["choices"][0]["text"] for e in events if e != "[DONE]" and e.get("choices")]
    return "".join(texts), events


def gauge(client: httpx.Client, name: str) -> int:
    """Returns a value of /metrics."""
    prefix = f"infinicore_infer_{name} "
    lines = client.get("/metrics").text.splitlines()
    return int(float(next(line for line in lines if line.startswith(prefix)).removeprefix(prefix)))


def test_drain_under_load(tmp_path: Path, reference: Qwen3ForCausalLM) -> None:
    """More streams than are computed together: all are finished, those still queued included."""
    prompts = [f"Tell me a story about {i}." for i in range(USERS)]
    begun = threading.Semaphore(0)
    with launched(tmp_path / "log", "--max-batch", str(BATCH)) as (process, url):
        with ThreadPoolExecutor(USERS) as pool:
            answers = [pool.submit(stream, url, prompt, begun, STEPS) for prompt in prompts]
            begun.acquire()
            with httpx.Client(base_url=url) as client:
                assert client.get("/health").status_code == 200
                while gauge(client, "requests_waiting") != USERS - BATCH:
                    assert not all(answer.done() for answer in answers), "nobody had to wait"
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                while (health := client.get("/health")).status_code == 200:
                    time.sleep(0.01)
                assert health.status_code == 503
                assert int(health.headers["retry-after"]) > 0
                refused = client.post("/v1/completions", json={"prompt": "x"})
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "draining"
            for prompt, answer in zip(prompts, answers, strict=True):
                text, events = answer.result()
                expected = reference.generate(prompt, STEPS, temperature=0, ignore_eos=True).text
                assert text == expected and events[-1] == "[DONE]"
        assert process.wait(60) == 0
    assert "before they are finished" not in (tmp_path / "log").read_text("utf-8")


@pytest.mark.parametrize("second_signal", [False, True])
def test_answers_that_take_too_long(tmp_path: Path, second_signal: bool) -> None:
    """At the end of the time, or at a second signal, clients get an error instead of the rest."""
    begun = threading.Semaphore(0)
    timeout = "60" if second_signal else "0.2"
    with launched(tmp_path / "log", "--drain-timeout", timeout) as (process, url):
        args = (url, "Hello", begun, 2000)
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(stream, *args) for _ in range(4)]
            for _ in range(4):
                begun.acquire()
            process.send_signal(signal.SIGTERM)
            if second_signal:
                while httpx.get(f"{url}/health").status_code == 200:
                    time.sleep(0.01)
                process.send_signal(signal.SIGINT)
            for answer in answers:
                _, events = answer.result()
                assert events[-2]["error"]["code"] == "draining" and events[-1] == "[DONE]"
        assert process.wait(60) == 0
    text = (tmp_path / "log").read_text("utf-8")
    assert "ended before they are finished" in text and "Traceback" not in text
