"""``qwen3 embed`` and ``qwen3 rerank``, run as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infinicore_infer import arguments
from infinicore_infer.checkpoint import task
from python.helpers import make_text_model
from python.pooling_models import make_embedder, make_reranker
from python.test_cli import run
from qwen3 import Qwen3ForCausalLM

TEXTS = ["the cat sat", "你好，世界", "hello"]


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_names_of_tasks() -> None:
    assert arguments.TASKS == task.TASKS


def test_embed(tmp_path: Path) -> None:
    folder = make_embedder(tmp_path, tied=False)
    with Qwen3ForCausalLM(folder) as model:
        whole = model.embed(TEXTS)
        short = model.embed(TEXTS, 5, "Find cats", False)
    given = run("embed", "--model-path", folder, "--quiet", *TEXTS)
    piped = run("embed", "--model-path", folder, stdin="\n".join(TEXTS) + "\n")
    for done in (given, piped):
        assert done.returncode == 0 and not done.stderr, done.stderr
        answers = lines(done.stdout)
        assert [each["index"] for each in answers] == [0, 1, 2]
        assert [each["text"] for each in answers] == TEXTS
        assert np.array_equal(np.array([e["embedding"] for e in answers], np.float32), whole)
    more = ["--dimensions", 5, "--instruction", "Find cats", "--no-normalize"]
    done = run("embed", "--model-path", folder, *more, *TEXTS)
    got = np.array([each["embedding"] for each in lines(done.stdout)], np.float32)
    assert np.array_equal(got, short)
    chat = run("--model-path", folder, "--prompt", "Hello")
    assert chat.returncode == 1 and "loaded for task 'embed'" in chat.stderr


def test_rerank(tmp_path: Path) -> None:
    folder = make_reranker(tmp_path)
    with Qwen3ForCausalLM(folder) as model:
        expected = [
            {"index": each.index, "score": each.score, "document": each.document}
            for each in model.rerank("cat?", TEXTS, top_n=2)
        ]
    command = ["rerank", "--model-path", folder, "--query", "cat?", "--top-n", 2]
    assert lines(run(*command, *TEXTS).stdout) == expected
    assert lines(run(*command, stdin="\n".join(TEXTS)).stdout) == expected


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["embed"], 1, "there are no texts"),
        (["embed", "a b " * 900], 1, r"input[0] has "),
        (["embed", "a", "--dimensions", "65"], 1, "model's 64, got 65"),
        (["embed", "a", "--dimensions", "0"], 2, "'0' is not a whole number above 0"),
        (["rerank", "a"], 2, "--query"),
        (["rerank", "a", "--query", "b"], 1, "the vocabulary has no token 'yes'"),
    ],
)
def test_errors(command: list[str], code: int, words: str, tmp_path: Path) -> None:
    folder = make_text_model(tmp_path)
    done = run(*command, "--model-path", folder)
    assert done.returncode == code and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
