"""infinicore_infer/cluster on a local cluster of two nodes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer.tools.serving_client import Answer, ServingClient
from python.helpers import DEMO, SCRIPTS
from qwen3 import Qwen3ForCausalLM

ray = pytest.importorskip("ray", reason="scripts/requirements/ray.txt is not installed")

from infinicore_infer.cluster import batch as ray_batch  # noqa: E402
from infinicore_infer.cluster import serve as serve_ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util import list_named_actors  # noqa: E402

CHAT = "/v1/chat/completions"
QUESTION = {"role": "user", "content": "What is the capital of France?"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes of one CPU: each has room for one replica or worker."""
    memory = 80 << 20
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": memory}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1, object_store_memory=memory)
    environment = {"env_vars": {"PYTHONPATH": str(SCRIPTS)}}
    ray.init(address=nodes.address, runtime_env=environment, log_to_driver=False)
    yield
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def client(cluster: None) -> Iterator[ServingClient]:
    """Two replicas."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--replicas", "2", "--threads", "1", "--kv-memory", "64M", "--port", str(port)]
    serve_ray.start(serve_ray.build_parser().parse_args(arguments))
    yield ServingClient(f"http://127.0.0.1:{port}/v1", timeout=60)
    serve.shutdown()


def replicas() -> list[str]:
    """Names of the replicas' actors."""
    actors = list_named_actors(all_namespaces=True)
    return [a["name"] for a in actors if a["name"].startswith("SERVE_REPLICA::qwen3#")]


def ask(client: ServingClient, **body: Any) -> Answer:
    return client.stream(CHAT, {"messages": [QUESTION], "temperature": 0, **body})


def test_answers(client: ServingClient) -> None:
    assert client.model() == "qwen3-tiny"
    assert client.get("/health")[0] == 200 and client.get("/nowhere")[0] == 404
    answer = ask(client)
    assert answer.text.endswith("The capital of France is Paris.") and not answer.error
    assert "status 400" in ask(client, temperature=-1).error


def test_a_session_stays_with_its_replica(client: ServingClient) -> None:
    """Else half of these would miss the prefix cache of the replica that has the chat."""
    for i in range(6):
        headers = {"X-Session-Id": f"session {i}"}
        text = f"{i} " + "Please listen carefully. " * 20
        messages = [{"role": "user", "content": text}]
        body = {"messages": messages, "temperature": 0, "max_tokens": 2}
        assert client.stream(CHAT, body, headers=headers).cached_tokens < 32
        assert client.stream(CHAT, body, headers=headers).cached_tokens > 50


def test_a_killed_replica(client: ServingClient, reference: Qwen3ForCausalLM) -> None:
    """Its streams break off aloud, the other's go on, and soon there are two again."""
    before = replicas()
    assert len(before) == 2
    text = "Tell me a story."
    expected = reference.generate(text, 150, temperature=0, ignore_eos=True).text
    body = {"prompt": text, "max_tokens": 150, "temperature": 0, "ignore_eos": True}
    answers: list[Answer] = []

    killed = threading.Event()

    def user() -> None:
        # Again and again, so that streams are under way on both when one is killed.
        while not killed.is_set():
            answers.append(client.stream("/v1/completions", body))

    users = [threading.Thread(target=user) for _ in range(16)]
    for thread in users:
        thread.start()
    while len(answers) < 4:
        time.sleep(0.01)
    ray.kill(ray.get_actor(before[0], namespace="serve"))
    killed.set()
    for thread in users:
        thread.join()
    whole = [answer for answer in answers if not answer.error]
    broken = [answer for answer in answers if answer.error]
    assert whole and broken
    assert {answer.text for answer in whole} == {expected}
    assert all(expected.startswith(answer.text) for answer in broken)
    good = 0
    for _ in range(300):
        good = 0 if ask(client).error else good + 1
        if good >= 10 and len(replicas()) == 2 and before[0] not in replicas():
            break
        time.sleep(0.1)
    assert good >= 10 and len(replicas()) == 2
    assert before[0] not in replicas()


def test_batches(cluster: None, tmp_path: Path, reference: Qwen3ForCausalLM) -> None:
    """Last: the replicas need the CPUs that the workers get now."""
    serve.shutdown()
    prompts = [f"What is {i} + 1?" for i in range(12)]
    for name, part in (("a", prompts[:5]), ("b", prompts[5:])):
        lines = [json.dumps({"id": prompt, "prompt": prompt}) for prompt in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    arguments = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--output", str(tmp_path)]
    arguments += ["--workers", "1", "--threads", "1", "--max-tokens", "8", "--temperature", "0"]
    args = ray_batch.build_parser().parse_args(arguments)
    assert ray_batch.answer_files(args.files, args.output, str(DEMO), args) == 12
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {row["id"]: row["text"] for row in rows} == {
        prompt: reference.generate(prompt, 8, temperature=0).text for prompt in prompts
    }
