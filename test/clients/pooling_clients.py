"""Lets clients of embeddings and rerankers use running servers. By hand, as run.py:

    python test/clients/pooling_clients.py --embed URL --rerank URL

Prints a line per client with its version; the exit status is 1 if one failed. What a client gets is
compared with plain requests, which the automatic tests compare with transformers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import urllib.request
from collections.abc import Callable
from typing import Any

from running import run_clients

TEXTS = ["The cat sat on the mat.", "Paris is in France.", "Hello, world"]
QUERY = "Where is the cat?"


def post(url: str, body: Any) -> Any:
    """Returns the answer to a plain request."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def model_of(url: str) -> str:
    """Returns the name of a server's model."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as response:
        return str(json.load(response)["data"][0]["id"])


def vectors(url: str, texts: list[str], **more: Any) -> list[list[float]]:
    """Returns what a plain request gives for texts."""
    answer = post(f"{url}/v1/embeddings", {"input": texts, **more})
    return [each["embedding"] for each in answer["data"]]


def near(a: Any, b: Any) -> bool:
    """Returns whether vectors are the same but for how floats are written."""
    return len(a) == len(b) and all(
        math.isclose(x, y, abs_tol=1e-6)
        for one, other in zip(a, b, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def check_openai(embed: str, rerank: str) -> None:
    """Floats, base64, fewer dimensions, errors."""
    import openai

    client = openai.OpenAI(base_url=f"{embed}/v1", api_key="none", max_retries=0)
    name, expected = model_of(embed), vectors(embed, TEXTS)
    for form in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model=name, input=TEXTS, **form)
        assert near([each.embedding for each in answer.data], expected)
    short = client.embeddings.create(model=name, input=TEXTS[0], dimensions=8)
    assert near([short.data[0].embedding], vectors(embed, TEXTS[:1], dimensions=8))
    try:
        client.embeddings.create(model=name, input=TEXTS, dimensions=10**6)
    except openai.BadRequestError as error:
        assert error.param == "dimensions"
    else:
        raise AssertionError("a million dimensions were accepted")


def check_langchain(embed: str, rerank: str) -> None:
    """Documents and queries, which it sends as token ids unless it is told not to."""
    from langchain_openai import OpenAIEmbeddings

    common = {"model": model_of(embed), "base_url": f"{embed}/v1", "api_key": "none"}
    client = OpenAIEmbeddings(**common, check_embedding_ctx_length=False)
    expected = vectors(embed, TEXTS)
    assert near(client.embed_documents(TEXTS), expected)
    assert near([client.embed_query(TEXTS[1])], expected[1:2])
    assert near(asyncio.run(client.aembed_documents(TEXTS)), expected)


def check_llama_index(embed: str, rerank: str) -> None:
    """Embeddings, and rerankers of Jina's and TEI's form."""
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.postprocessor.jinaai_rerank import JinaRerank
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    client = OpenAILikeEmbedding(
        model_name=model_of(embed), api_base=f"{embed}/v1", api_key="none", embed_batch_size=2
    )
    expected = vectors(embed, TEXTS)
    assert near(client.get_text_embedding_batch(TEXTS), expected)
    assert near([client.get_query_embedding(TEXTS[2])], expected[2:])
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    plain = post(f"{rerank}/v1/rerank", {"query": QUERY, "documents": TEXTS})["results"]
    jina = JinaRerank(
        base_url=f"{rerank}/v1", api_key="none", model=model_of(rerank), top_n=len(TEXTS)
    )
    tei = TextEmbeddingInference(base_url=rerank, top_n=len(TEXTS), model_name=model_of(rerank))
    for judge in (jina, tei):
        found = judge.postprocess_nodes(nodes, QueryBundle(QUERY))
        assert [each.node.get_content() for each in found] == [
            TEXTS[each["index"]] for each in plain
        ]
        assert near([[e.score for e in found]], [[e["relevance_score"] for e in plain]])


def check_cohere(embed: str, rerank: str) -> None:
    """The clients of both versions of the protocol."""
    import cohere

    plain = post(f"{rerank}/v1/rerank", {"query": QUERY, "documents": TEXTS})["results"]
    expected = [(each["index"], each["relevance_score"]) for each in plain]
    for kind in (cohere.Client, cohere.ClientV2):
        client = kind(api_key="none", base_url=rerank)
        answer = client.rerank(model=model_of(rerank), query=QUERY, documents=TEXTS, top_n=2)
        assert [(each.index, each.relevance_score) for each in answer.results] == expected[:2]


def check_litellm(embed: str, rerank: str) -> None:
    """Embeddings, and rerankers of Jina's and Cohere's form."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    answer = litellm.embedding(
        model=f"openai/{model_of(embed)}", input=TEXTS, api_base=f"{embed}/v1", api_key="none"
    )
    assert near([each["embedding"] for each in answer.data], vectors(embed, TEXTS))
    plain = post(f"{rerank}/v1/rerank", {"query": QUERY, "documents": TEXTS})["results"]
    expected = [(each["index"], each["relevance_score"]) for each in plain]
    for form, base in (
        ("jina_ai", f"{rerank}/v1/rerank"),
        ("cohere", rerank),
        ("hosted_vllm", rerank),
    ):
        judged = litellm.rerank(
            model=f"{form}/{model_of(rerank)}",
            query=QUERY,
            documents=TEXTS,
            top_n=2,
            api_base=base,
            api_key="none",
        )
        found = [(each["index"], each["relevance_score"]) for each in judged.results]
        assert found == expected[:2], (form, found)


CLIENTS: dict[str, tuple[str, Callable[[str, str], None]]] = {
    "openai": ("openai", check_openai),
    "langchain": ("langchain-openai", check_langchain),
    "llama_index": ("llama-index-core", check_llama_index),
    "cohere": ("cohere", check_cohere),
    "litellm": ("litellm", check_litellm),
}


def main() -> int:
    """Runs the clients named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embed", required=True, metavar="URL")
    parser.add_argument("--rerank", required=True, metavar="URL")
    parser.add_argument("clients", nargs="*", help=", ".join(CLIENTS))
    args = parser.parse_args()
    return run_clients(CLIENTS, args.clients, args.embed, args.rerank)


if __name__ == "__main__":
    raise SystemExit(main())
