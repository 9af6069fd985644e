"""The module compiled against newer InfiniCore's declarations, on a fake with its operators.

That is all it shows: no InfiniCore newer than 0.1.0 was at hand.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from infinicore.conftest import ROOT, RunCase
from infinicore.test_device_models import TOLERANCE

Folders = Callable[[str], Path]
OPERATORS = ["add_rms_norm", "embedding", "paged_caching", "paged_attention"]
OPERATORS += ["paged_attention_prefill", "silu_and_mul"]


@pytest.fixture(scope="module")
def run_newer(run_case: RunCase) -> RunCase:
    return partial(run_case, newer=True)


def route(operator: str) -> str:
    """The name by which an operator is avoided: the paged ones go together."""
    return "paged_attention" if operator.startswith("paged") else operator


@pytest.mark.parametrize("name", ["wide-heads", "three-wide", "f32"])
def test_logits(run_newer: RunCase, folders: Folders, name: str) -> None:
    """Also where the operators do not fit: float32, and heads of 16 ("f32")."""
    distances = run_newer("parity", folder=folders(name), dtypes=list(TOLERANCE))
    for dtype, of_dtype in zip(TOLERANCE, distances, strict=True):
        assert max(of_dtype) < TOLERANCE[dtype], distances


def test_everything_is_used(run_newer: RunCase, folders: Folders) -> None:
    info = run_newer("info", folder=folders("wide-heads"))
    assert (info["infinicore"], info["avoids"]) == ("newer-than-0.1.0", "none")
    assert run_newer("info", folder=folders("f32"))["avoids"] == "paged_attention,graphs"


@pytest.mark.parametrize("device", ["hygon", "qy", "ali"])
def test_new_devices(run_newer: RunCase, folders: Folders, device: str) -> None:
    environment = {"device": device}
    distances = run_newer(
        "parity", environment=environment, folder=folders("wide-heads"), device=device
    )
    assert max(distances[0]) < TOLERANCE["bf16"], distances


@pytest.mark.parametrize("device", ["qy", "ali"])
def test_devices_that_an_old_one_does_not_know(
    run_case: RunCase, folders: Folders, device: str
) -> None:
    error = run_case("refusal", folder=folders("one-layer"), device=device)
    assert error["name"] == "QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED"
    assert f"InfiniCore 0.1.0 does not know device {device}" in error["text"]


def test_requests_do_not_see_each_other(run_newer: RunCase, folders: Folders) -> None:
    run_newer("batch_is_alone", folder=folders("wide-heads"))


@pytest.mark.parametrize("stream", ["eager", "jitter"])
def test_whenever_the_stream_runs(run_newer: RunCase, folders: Folders, stream: str) -> None:
    environment, folder = {"stream": stream}, folders("wide-heads")
    distances = run_newer("parity", environment=environment, folder=folder, max_step_tokens=16)
    assert max(distances[0]) < TOLERANCE["bf16"], distances


# ------------------------------------------------------------------ several devices


@pytest.mark.parametrize(("name", "ndev"), [("wide-heads", 2), ("wide-heads", 4), ("f32", 2)])
def test_logits_of_several_devices(
    run_newer: RunCase, folders: Folders, name: str, ndev: int
) -> None:
    """Each has an arena of its own KV heads, and the embedding; with four, KV heads are on two."""
    environment = {"count": ndev}
    distances = run_newer("parity", environment=environment, folder=folders(name), ndev=ndev)
    assert max(distances[0]) < TOLERANCE["bf16"], distances


@pytest.mark.parametrize("ntok", [1, 9])
def test_launches_of_several_devices(run_newer: RunCase, folders: Folders, ntok: int) -> None:
    """Every device does what a single one does, and two sums a layer."""
    environment, folder = {"count": 2}, folders("three-wide")
    report = run_newer(
        "launches", environment=environment, folder=folder, ndev=2, batch=3, ntok=ntok, past=280
    )
    # Products cannot add to the residual stream: the ranks' results are added up first.
    launches = expected(3, ntok == 1)
    launches |= {"AddRMSNorm": 2 * 3 - 1, "Add": 1, "RMSNorm": 1 + 2 * 3 + 1}
    assert report["launches"] == {kind: 2 * n for kind, n in launches.items()}
    assert report["sums"] == 2 * 3 * 2
    assert (report["syncs"], report["h2d"], report["d2h"]) == (2, 4, 2)
    assert (report["mallocs"], report["created"]) == (0, 0)


@pytest.mark.parametrize("ndev", [1, 2])
def test_arenas_share_the_limit(run_newer: RunCase, folders: Folders, ndev: int) -> None:
    environment, folder = {"count": ndev}, folders("wide-heads")
    block = run_newer("arena", environment=environment, folder=folder, ndev=ndev)["block"]
    limit = 11 * block
    report = run_newer(
        "arena", environment=environment, folder=folder, ndev=ndev, kv_limit_bytes=limit
    )
    assert (report["block"], report["arena"]) == (block, limit)


# ------------------------------------------------------------------ operators missing or wrong


@pytest.mark.parametrize("operator", OPERATORS)
def test_missing_operators_are_replaced(
    run_newer: RunCase, folders: Folders, operator: str
) -> None:
    environment, folder = {"quirks": f"no_{operator}"}, folders("wide-heads")
    info = run_newer("info", environment=environment, folder=folder)
    needed = route(operator) in ("embedding", "paged_attention")  # by a step that is a graph
    assert info["avoids"] == route(operator) + (",graphs" if needed else "")
    distances = run_newer("parity", environment=environment, folder=folder)
    assert max(distances[0]) < TOLERANCE["bf16"], distances


@pytest.mark.parametrize("operator", OPERATORS)
def test_wrong_operators_are_named_and_can_be_avoided(
    run_newer: RunCase, folders: Folders, monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    environment, folder = {"quirks": f"wrong_{operator}"}, folders("wide-heads")
    error = run_newer("refusal", environment=environment, folder=folder, device="nvidia")
    assert error["name"] == "QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED"
    assert re.search(rf": {operator} bf16 \[.*\] is wrong: largest error \S+, limit", error["text"])
    monkeypatch.setenv("QWEN3_INFINICORE_AVOID", route(operator))
    distances = run_newer("parity", environment=environment, folder=folder)
    assert max(distances[0]) < TOLERANCE["bf16"], distances


# ------------------------------------------------------------------ launches


def expected(layers: int, decode: bool) -> dict[str, int]:
    """Launches of a step, whatever its sequences."""
    return {
        "Embedding": 1,
        "RMSNorm": 4 * layers + 1,
        "RoPE": layers,
        "SiluAndMul": layers,
        "Gemm": 4 * layers + 1,
        "PagedCaching": layers,
        "PagedAttention" if decode else "PagedAttentionPrefill": layers,
    }


@pytest.mark.parametrize(
    ("batch", "ntok", "past"), [(1, 1, 5), (7, 1, 5), (4, 1, 300), (1, 9, 0), (5, 9, 280)]
)
def test_launches_do_not_grow(
    run_newer: RunCase,
    folders: Folders,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    ntok: int,
    past: int,
) -> None:
    """Neither with the number of requests nor with their lengths."""
    monkeypatch.setenv("QWEN3_INFINICORE_AVOID", "graphs")
    report = run_newer("launches", folder=folders("three-wide"), batch=batch, ntok=ntok, past=past)
    assert report["launches"] == expected(3, ntok == 1)
    assert (report["syncs"], report["h2d"], report["d2h"], report["pageable"]) == (1, 2, 1, 0)
    assert (report["mallocs"], report["created"], report["hidden"]) == (0, 0, 0)


def test_descriptors_of_decoding(run_newer: RunCase, folders: Folders) -> None:
    """Longer sequences need no new ones."""
    created = run_newer("descriptors", folder=folders("three-wide"), batch=3, steps=12)
    assert created[1:] == [0] * 11


@pytest.mark.parametrize("headers", [".infini/include", "test/fake_device/include"])
def test_launch_counter_of_gpu_checks_compiles(headers: str) -> None:
    folder = ROOT / headers
    if headers.startswith(".infini") and os.environ.get("INFINI_ROOT"):
        folder = Path(os.environ["INFINI_ROOT"]) / "include"
    if not folder.is_dir():
        pytest.skip(f"InfiniCore's headers are not in {headers}")
    command = [
        "c++",
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-isystem",
        str(folder),
    ]
    subprocess.run([*command, str(ROOT / "test/gpu/launch_counter.cpp")], check=True)


# ------------------------------------------------------------------ memory and failures


@pytest.mark.parametrize("blocks", [1, 2, 5, 9])
def test_cache_that_does_not_fit(run_newer: RunCase, folders: Folders, blocks: int) -> None:
    """The arena gets what there is; blocks from outside of it, and what mixes them, work too."""
    folder = folders("wide-heads")
    report = run_newer("arena", folder=folder)
    memory = report["without"] + blocks * report["block"]
    distances = run_newer("parity", environment={"memory": memory + 3_000_000}, folder=folder)
    assert max(distances[0]) < TOLERANCE["bf16"], distances
    report = run_newer("arena", environment={"memory": memory}, folder=folder)
    assert report["without"] + report["arena"] <= memory


@pytest.mark.parametrize("kind", ["malloc", "malloc_host", "copy", "descriptor", "execute"])
def test_calls_may_fail(run_newer: RunCase, folders: Folders, kind: str) -> None:
    report = run_newer("failing", folder=folders("wide-heads"), kind=kind, at_most=2000)
    # An arena that does not fit is made smaller without a word.
    assert report["n"] > 0 and report["phases"].get("swallowed", 0) == (kind == "malloc")
