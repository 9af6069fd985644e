"""Decode steps as graphs, on the fake with newer InfiniCore's declarations and CUDA's rules.

Eager steps are what graphs are compared with, to the bit. No graph ran on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from infinicore.conftest import RunCase

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def run_newer(run_case: RunCase) -> RunCase:
    return partial(run_case, newer=True)


@pytest.mark.parametrize("batch", [1, 4])
def test_one_launch(run_newer: RunCase, folders: Folders, batch: int) -> None:
    """The first step of a kind runs eagerly, the second is recorded, the third only launched."""
    reports = [
        run_newer(
            "launches", folder=folders("three-wide"), batch=batch, ntok=1, past=5, before=before
        )
        for before in (1, 2)
    ]
    rest = {"RMSNorm": 1, "Gemm": 1}  # the last norm and the head: which rows give logits differs
    for report in reports:
        # Embedding; per layer four norms, four products, rope, silu, storing, attention.
        assert (report["graphs"], report["in_graphs"]) == (1, 1 + 3 * 12)
        assert (report["syncs"], report["h2d"], report["d2h"], report["pageable"]) == (1, 2, 1, 0)
        assert (report["mallocs"], report["hidden"]) == (0, 0)
    recorded = sum(reports[0]["launches"].values())
    assert recorded == reports[0]["in_graphs"] + sum(rest.values())
    assert reports[1]["launches"] == rest


def test_equal_to_eager(run_newer: RunCase, folders: Folders) -> None:
    """To the bit, in batches that change, over the edges of blocks and tables."""
    report = run_newer("graphs_and_eager", folder=folders("three-wide"), steps=40)
    assert report["equal"] and report["graphs"] > 60
    # Batch sizes and widths of tables that came more than once, recorded once each.
    assert report["captured"] == report["kinds"]


@pytest.mark.parametrize("stream", ["eager", "jitter"])
def test_whenever_the_stream_runs(run_newer: RunCase, folders: Folders, stream: str) -> None:
    environment = {"stream": stream}
    report = run_newer(
        "graphs_and_eager", environment=environment, folder=folders("wide-heads"), steps=12
    )
    assert report["equal"] and report["graphs"] > 0


@pytest.mark.parametrize("failure", ["capture:1", "instantiate:1"])
def test_what_cannot_be_recorded_runs_eagerly(
    run_newer: RunCase, folders: Folders, failure: str
) -> None:
    """The kind whose graph failed stays eager, the others do not."""
    report = run_newer(
        "graphs_and_eager",
        environment={"fail": failure},
        folder=folders("three-wide"),
        steps=40,
    )
    assert report["equal"] and report["hits"] == 1
    # A recording that is refused is none; one that cannot be instantiated was one.
    assert report["captured"] == report["kinds"] - (failure == "capture:1")


def test_elementwise_operators_are_not_recorded(
    run_newer: RunCase, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their arguments would be read again from memory that is gone."""
    monkeypatch.setenv("QWEN3_INFINICORE_AVOID", "silu_and_mul")
    report = run_newer("graphs_and_eager", folder=folders("three-wide"), steps=6)
    assert report["equal"] and report["graphs"] == 0


@pytest.mark.parametrize("avoid", ["graphs", "paged_attention", "embedding"])
def test_without(
    run_newer: RunCase, folders: Folders, monkeypatch: pytest.MonkeyPatch, avoid: str
) -> None:
    monkeypatch.setenv("QWEN3_INFINICORE_AVOID", avoid)
    report = run_newer("launches", folder=folders("wide-heads"), batch=2, ntok=1, past=5, before=3)
    assert report["graphs"] == 0
