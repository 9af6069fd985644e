"""launch_server.py as a program: options, keys, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from infinicore_infer.arguments import memory_size
from infinicore_infer.server.options import build_parser
from python.helpers import SCRIPTS
from serving import eventually

PROGRAM = (sys.executable, str(SCRIPTS / "launch_server.py"))
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


@contextmanager
def launched(
    log: Path, *arguments: str, program: Sequence[str] = PROGRAM
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    command = [*program, "--port", "0", "--threads", "1", *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
    try:
        line = re.compile(r"running on (http://[\d.]+:\d+)")
        eventually(lambda: line.search(log.read_text("utf-8")) or process.poll() is not None)
        found = line.search(log.read_text("utf-8"))
        assert found, log.read_text("utf-8")
        url = found[1].replace("0.0.0.0", "127.0.0.1")
        assert eventually(lambda: httpx.get(f"{url}/health").status_code == 200)
        yield process, url
    finally:
        process.kill()
        process.wait()


def test_sigterm_finishes_what_is_in_progress(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with launched(log, "--model-name", "demo") as (process, url):
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "demo"
        assert "anybody" not in log.read_text("utf-8")
        body = {"messages": MESSAGES, "ignore_eos": True, "temperature": 0, "max_tokens": 1500}
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))

        thread = threading.Thread(target=ask)
        thread.start()
        some = re.compile(r"generated_tokens_total [1-9]")
        assert eventually(lambda: some.search(httpx.get(f"{url}/metrics").text))
        process.send_signal(signal.SIGTERM)
        thread.join()
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] == 1500
        assert process.wait(60) == 0


def test_key_and_warning(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with launched(log, "--host", "0.0.0.0") as (process, url):
        assert "anybody who reaches 0.0.0.0" in log.read_text("utf-8")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with launched(log, "--host", "0.0.0.0", "--api-key", "k1y", "--log-level", "debug") as (
        process,
        url,
    ):
        assert "anybody" not in log.read_text("utf-8")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer k1y"}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        # Keys stay out of the log, right or wrong ones, however they are sent and whatever fails.
        for headers in (
            {"Authorization": "Bearer wr0ng"},
            {"Authorization": "wr0ng"},
            {"X-Api-Key": "wr0ng"},
            {"X-Api-Key": "k1y"},
            {"Authorization": "Bearer k1y"},
        ):
            status = 200 if "k1y" in str(headers) else 401
            for path in ("/v1/models", "/v1/models?api_key=wr0ng", "/metrics"):
                assert httpx.get(url + path, headers=headers).status_code == status
            httpx.post(f"{url}/v1/completions", content=b"{", headers=headers)
        text = log.read_text("utf-8")
        assert "status=401" in text and "status=400" in text
        assert "k1y" not in text and "wr0ng" not in text


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "launch_server.py"), "--port", "0", "--model-path"]
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "config.json is missing" in run.stderr
    (tmp_path / "config.json").write_text("{}", "utf-8")
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "error: " in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--kv-memory", "1K"), r"--kv-memory\) is 1024, .* take 32768 bytes"),
        (("--max-bodies-memory", "1M"), "--max-bodies-memory 1048576 is less than --max-body"),
    ],
)
def test_limits_that_let_nothing_through(options: tuple[str, ...], problem: str) -> None:
    """They end the program at once, not each request later."""
    run = subprocess.run(
        [*PROGRAM, "--port", "0", *options], capture_output=True, text=True, timeout=60
    )
    (error,) = (line for line in run.stderr.splitlines() if line.startswith("error: "))
    assert run.returncode == 1 and re.search(problem, error), run.stderr
    assert "Traceback" not in run.stderr


def test_lock_is_handed_over_soon(tmp_path: Path) -> None:
    """Threads that compute in Python give the event loop its turn sooner than Python's 5 ms."""
    program = (
        "import sys; from infinicore_infer.server.launch import main; "
        f"main(['--port', '0', '--model-path', {str(tmp_path)!r}]); print(sys.getswitchinterval())"
    )
    command, paths = [sys.executable, "-c", program], {"PYTHONPATH": str(SCRIPTS)}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **paths}
    )
    assert float(run.stdout) == pytest.approx(0.001), run.stderr


def test_options() -> None:
    assert memory_size("4G") == 4 << 30 and memory_size("1.5MiB") == 3 << 19
    assert memory_size("77") == 77
    parser = build_parser()
    assert parser.parse_args(["--model-path", "M"]).step_tokens == 0  # the backend's choice
    for bad in (
        ["--max-batch", "0"],
        ["--kv-memory", "lots"],
        ["--kv-memory", "9" * 400 + "T"],
        ["--max-body", "0"],
        ["--max-body", "1023"],
        ["--lookup", "-1"],
        ["--max-connections", str(2**31)],
        ["--max-queue", "\u0663"],
        ["--request-timeout", "-1"],
        ["--port", "99999"],
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(bad)
    assert os.environ.get("INFINICORE_INFER_API_KEY") is None


def test_json_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ("--log-format", "json", "--log-level", "debug", "--api-key", "k1y")
    with launched(log, *arguments) as (process, url):
        headers = {"Authorization": "Bearer k1y", "X-Request-Id": "mine-1"}
        body = {"messages": [{"role": "user", "content": "a-secret"}], "max_tokens": 1}
        for path in ("/v1/chat/completions", "/v1/nothing"):
            httpx.post(url + path, json=body, headers=headers, timeout=20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    text = log.read_text("utf-8")
    assert "a-secret" not in text and "k1y" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    mine = [line for line in lines if line.get("id") == "mine-1"]
    assert [(line["method"], line["status"]) for line in mine] == [("POST", 200), ("POST", 404)]
    assert all(line["seconds"] > 0 and line["level"] == "info" for line in mine)
    assert any("is ready" in line.get("message", "") for line in lines)
