"""The example of docs/retrieval.md, as it stands there, on tiny random models."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from python.helpers import ROOT
from python.pooling_models import make_embedder, make_reranker
from qwen3 import Qwen3ForCausalLM


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_embedder(tmp_path, "Qwen3-Embedding-0.6B", tied=False)
    make_reranker(tmp_path, "Qwen3-Reranker-0.6B")
    text = (ROOT / "docs" / "retrieval.md").read_text("utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(source, "docs/retrieval.md", "exec"), names)
    shown = re.findall(r"^(\d\.\d{3}) (.+)$", output.getvalue(), re.MULTILINE)
    documents, nearest = names["documents"], names["nearest"]
    assert isinstance(documents, list) and isinstance(nearest, np.ndarray)
    assert sorted(text for _, text in shown) == sorted(documents[i] for i in nearest)
    scores = [float(score) for score, _ in shown]
    assert scores == sorted(scores, reverse=True)
    # What numpy found is what the vectors say, and every score is that of the document alone.
    vectors, asked = names["vectors"], names["asked"]
    products = [float(np.dot(vector, asked)) for vector in vectors]  # type: ignore[attr-defined]
    assert list(nearest) == sorted(range(3), key=lambda i: -products[i])[:2]
    with Qwen3ForCausalLM("Qwen3-Reranker-0.6B") as judge:
        for score, document in shown:
            (alone,) = judge.rerank(str(names["query"]), [document])
            assert f"{alone.score:.3f}" == score
