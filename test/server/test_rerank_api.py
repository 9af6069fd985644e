"""``/rerank`` and ``/score`` in the forms of Jina, Cohere, TEI and vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from python.pooling_models import make_reranker
from qwen3 import Qwen3ForCausalLM
from serving import LiveServer

QUERY = "where is the cat?"
DOCUMENTS = ["hello there", "the cat sat on the mat", "", "你好，世界"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("rerankers"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Qwen3ForCausalLM]:
    with Qwen3ForCausalLM(folder, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(folder=folder) as server:
        yield server


@pytest.fixture
def server(shared: LiveServer) -> Iterator[LiveServer]:
    yield shared
    shared.check_idle()


def answer(server: LiveServer, path: str, **body: Any) -> Any:
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


def scores(entries: Any, name: str = "relevance_score") -> list[tuple[int, float]]:
    return [(each["index"], each[name]) for each in entries]


def test_jina_and_cohere(server: LiveServer, model: Qwen3ForCausalLM) -> None:
    expected = [(each.index, each.score) for each in model.rerank(QUERY, DOCUMENTS)]
    tokens = 0
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        result = answer(server, path, model="qwen3-tiny", query=QUERY, documents=DOCUMENTS)
        assert scores(result["results"]) == expected
        assert result["model"] == "qwen3-tiny" and result["id"]
        assert result["usage"]["prompt_tokens"] == result["usage"]["total_tokens"] > tokens
        assert result["meta"]["billed_units"] == {"search_units": 1}
        shown = [each.get("document") for each in result["results"]]
        texts = [{"text": DOCUMENTS[i]} for i, _ in expected]
        assert shown == ([None] * 4 if path == "/v2/rerank" else texts)
    objects = [{"text": document} for document in DOCUMENTS]
    result = answer(
        server, "/v1/rerank", query=QUERY, documents=objects, top_n=2, return_documents=False
    )
    assert scores(result["results"]) == expected[:2]
    assert "document" not in result["results"][0]
    asked = answer(
        server, "/v1/rerank", query=QUERY, documents=DOCUMENTS, instruction="Find greetings"
    )
    theirs = model.rerank(QUERY, DOCUMENTS, "Find greetings")
    assert scores(asked["results"]) == [(each.index, each.score) for each in theirs]
    (card,) = server.http.get("/v1/models").json()["data"]
    assert card["task"] == "rerank"


def test_tei(server: LiveServer, model: Qwen3ForCausalLM) -> None:
    expected = model.rerank(QUERY, DOCUMENTS)
    plain = answer(server, "/rerank", query=QUERY, texts=DOCUMENTS)
    assert plain == [{"index": each.index, "score": each.score} for each in expected]
    raw = answer(server, "/rerank", query=QUERY, texts=DOCUMENTS, raw_scores=True, return_text=True)
    assert raw == [
        {"index": each.index, "score": each.logit, "text": each.document} for each in expected
    ]


def test_vllm_scores(server: LiveServer, model: Qwen3ForCausalLM) -> None:
    single = {each.index: each.score for each in model.rerank(QUERY, DOCUMENTS)}
    expected = [(i, single[i]) for i in range(len(DOCUMENTS))]
    for left, right in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")):
        result = answer(server, "/score", **{left: QUERY, right: DOCUMENTS})
        assert scores(result["data"], "score") == expected
        assert all(each["object"] == "score" for each in result["data"])
    queries = [QUERY, "who?", QUERY, QUERY]
    other = model.rerank("who?", [DOCUMENTS[1]])[0].score
    result = answer(server, "/v1/score", text_1=queries, text_2=DOCUMENTS)
    assert scores(result["data"], "score") == [expected[0], (1, other), *expected[2:]]
    (one,) = answer(server, "/score", text_1=QUERY, text_2=DOCUMENTS[1])["data"]
    assert one["score"] == single[1]


def test_long_documents(server: LiveServer, model: Qwen3ForCausalLM) -> None:
    """Jina and Cohere cut, TEI refuses unless it is asked to cut."""
    long = ["the cat sat on the mat " * 100, "hello"]
    expected = [(each.index, each.score) for each in model.rerank(QUERY, long, truncate=True)]
    assert scores(answer(server, "/rerank", query=QUERY, documents=long)["results"]) == expected
    cut = answer(server, "/rerank", query=QUERY, texts=long, truncate=True)
    assert scores(cut, "score") == expected
    refused = server.post("/rerank", {"query": QUERY, "texts": long})
    assert refused.status_code == 400 and "texts[0] has" in refused.text
    short = answer(server, "/v2/rerank", query=QUERY, documents=long, max_tokens_per_doc=4)
    part = model.tokenizer.shortened(long[0], 4)
    assert scores(short["results"]) == [
        (each.index, each.score) for each in model.rerank(QUERY, [part, "hello"])
    ]


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/rerank", {"documents": ["a"]}, "query", "required"),
        ("/rerank", {"query": "a"}, "documents", "required"),
        ("/rerank", {"query": "", "documents": ["a"]}, "query", "is empty"),
        ("/rerank", {"query": "a", "documents": []}, "documents", "from 1 to 2048, got 0"),
        ("/rerank", {"query": "a", "texts": []}, "texts", "from 1 to 2048, got 0"),
        ("/rerank", {"query": "a", "texts": ["b"], "documents": ["b"]}, "texts", "together"),
        ("/rerank", {"query": "a", "documents": [{"image": "b"}]}, "documents[0]", '{"text"'),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n", "got 0"),
        ("/rerank", {"query": "a", "documents": ["b"], "rank_fields": ["x"]}, "rank_fields", "x"),
        ("/score", {}, "text_1", "give text_1 and text_2"),
        ("/score", {"text_1": "a"}, "text_2", "required"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", "has 2 texts, and text_2 1"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2", "from 1 to 2048, got 0"),
        ("/score", {"text_1": "a", "text_2": "b", "queries": "c"}, "text_1", "not both"),
        (
            "/score",
            {"text_1": ["a", "b"], "text_2": ["c", "the cat " * 400]},
            "text_2[1]",
            "text_2[1] has",
        ),
        ("/score", {"text_1": "", "text_2": "c"}, "text_1", "has an empty query"),
        ("/v1/embeddings", {"input": "a"}, None, "needs a model for embeddings"),
        ("/v1/completions", {"prompt": "a"}, None, "it serves /v1/rerank and /v1/score"),
    ],
)
def test_what_is_refused(
    server: LiveServer, path: str, body: Any, param: str | None, words: str
) -> None:
    response = server.post(path, body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"] or words == "x", error
