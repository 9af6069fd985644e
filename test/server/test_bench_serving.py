"""The serving benchmark: its figures against answers and servers whose timing is known."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from infinicore_infer.tools import bench_serving
from infinicore_infer.tools.serving_client import Answer, ServingClient
from serving import CAPITAL, LiveServer


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0.0),
        ([7.0], 0.99, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([3.0, 1.0, 2.0, 4.0], 0.5, 2.0),
        ([float(i) for i in range(1, 101)], 0.9, 90.0),
        ([float(i) for i in range(1, 101)], 0.99, 99.0),
        ([1.0, 2.0], 1.0, 2.0),
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert bench_serving.percentile(values, share) == expected


def test_summary() -> None:
    """By hand: 5 tokens in 2 seconds; one request failed."""
    answers = [
        Answer(1.0, "abc", [0.25, 0.5, 1.0], {"prompt_tokens": 9, "completion_tokens": 3}),
        Answer(2.0, "ab", [0.75, 1.75]),
        Answer(0.1, error="status 500"),
    ]
    row = bench_serving.summarize("2 users", answers, 2.0)
    assert (row.requests, row.errors, row.tok_s, row.total_p50) == (2, 1, 2.5, 1000)
    assert (row.ttft_p50, row.ttft_p99) == (250, 750)
    assert (row.itl_p50, row.itl_p90) == (500, 1000)


def test_run_against_server(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", f"{server.url}/v1", "--users", "1", "3", "--rate", "20", "--rounds", "1"]
    arguments += ["--requests", "4", "--prompt", "20", "--generate", "6", "--second-turn", "150"]
    assert bench_serving.main([*arguments, "--json", str(tmp_path / "run.json")]) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert [row["load"] for row in run["rows"]] == ["1 users", "3 users", "20 /s"]
    for row in run["rows"]:
        assert row["requests"] == 4 and row["errors"] == 0 and row["prompt"] > 20
        assert 0 < row["tok_s"] and 0 < row["ttft_p50"] <= row["total_p50"]
    turn = run["second_turn"][0]
    assert turn["cached"] >= turn["prompt"] - 32 > 100
    table = capsys.readouterr().out
    assert "| 3 users | 4 | 0 |" in table and "| first_ttft |" in table


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="scripts/requirements/bench.txt is not installed")
    row = dict.fromkeys(bench_serving.Row.__dataclass_fields__, 1.0) | {"load": "1 users"}
    run = {"label": "a", "rows": [row, row | {"tok_s": 3.0}], "second_turn": []}
    (tmp_path / "run.json").write_text(json.dumps(run))
    picture = tmp_path / "run.png"
    arguments = ["--plot", str(picture), "--compare", str(tmp_path / "run.json")]
    assert bench_serving.main(arguments) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_prompts_share_no_beginning(server: LiveServer) -> None:
    args = bench_serving.parse_arguments(["--url", server.url])
    load = bench_serving.Load(ServingClient(server.url), args)
    texts = [load.text(5) for _ in range(50)]
    assert len({text.split()[0] for text in texts}) == 50
    again = bench_serving.Load(ServingClient(server.url), args)
    assert [again.text(5) for _ in range(50)] == texts


def test_client(server: LiveServer) -> None:
    client = ServingClient(server.url)
    assert client.model() == "qwen3-tiny"
    answer = client.stream("/v1/chat/completions", {"messages": CAPITAL, "temperature": 0})
    whole = server.chat()["choices"][0]["message"]
    assert answer.text == whole["reasoning_content"] + whole["content"]
    assert answer.tokens == 25 and not answer.error and answer.times == sorted(answer.times)
    body = {"messages": CAPITAL, "ignore_eos": True}
    left = client.stream("/v1/chat/completions", body, leave_after=3)
    assert left.cancelled and len(left.times) == 3
    assert "status 400" in client.stream("/v1/chat/completions", {"messages": []}).error
    with pytest.raises(ValueError, match="ftp"):
        ServingClient("ftp://x")


@pytest.fixture
def broken_server() -> Iterator[str]:
    """Answers with half a stream."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"text": "a"}]}\n\n')

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_lost_streams_are_errors(broken_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ServingClient(broken_server).stream("/v1/completions", {"prompt": "x"})
    assert answer.text == "a" and answer.error == "the stream ended without [DONE]"
    assert bench_serving.main(["--url", broken_server, "--model", "m", "--users", "1"]) == 1
    assert "without [DONE]" in capsys.readouterr().err
