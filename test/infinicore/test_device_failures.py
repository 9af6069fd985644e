"""Whatever fails on a device becomes an exception; nothing leaks and the model goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from infinicore.conftest import RunCase

Folders = Callable[[str], Path]

STATUS = {"malloc": "OUT_OF_MEMORY", "malloc_host": "OUT_OF_MEMORY", "count": "DEVICE_NOT_FOUND"}


@pytest.mark.parametrize(
    "kind",
    [
        "count",
        "stream",
        "handle",
        "malloc",
        "malloc_host",
        "copy",
        "sync",
        "tensor",
        "descriptor",
        "workspace",
        "launch",
        "execute",
        "set_device",
    ],
)
def test_every_call_may_fail(run_case: RunCase, folders: Folders, kind: str) -> None:
    """The 1st, 2nd, ... call fails, until a run needs fewer; the step is then repeated."""
    report = run_case("failing", folder=folders("one-layer"), kind=kind, at_most=2000)
    status = STATUS.get(kind, "INTERNAL_ERROR")
    told = {text for text in report["texts"] if not text.endswith(": ")}
    assert report["n"] > 0 and told
    assert {text for text in told if f"(QWEN3_STATUS_{status})" not in text} == set()
    # A cache that cannot be freed for lack of its device is dropped without a word.
    assert kind == "set_device" or "swallowed" not in report["phases"]


def test_copies_of_large_buffers_may_fail(run_case: RunCase, folders: Folders) -> None:
    """Buffers of several MiB are cleared by several copies, of which any may fail."""
    report = run_case(
        "failing",
        folder=folders("one-layer"),
        kind="copy",
        at_most=2000,
        max_step_tokens=512,
    )
    assert report["n"] > 0


def test_initialisation_may_fail(run_case: RunCase, folders: Folders) -> None:
    error = run_case(
        "refusal",
        environment={"fail": "init:1"},
        folder=folders("one-layer"),
        device="nvidia",
    )
    assert error["name"] == "QWEN3_STATUS_INTERNAL_ERROR" and "infinirtInit" in error["text"]


def test_device_goes_away(run_case: RunCase, folders: Folders) -> None:
    """From some call on everything fails: exceptions, never a crash or a hang."""
    assert run_case("losing", folder=folders("one-layer"), step=31) > 500


@pytest.mark.parametrize("megabytes", [0.01, 0.2, 0.5, 1.0, 2.0, 3.0])
def test_model_does_not_fit(run_case: RunCase, folders: Folders, megabytes: float) -> None:
    error = run_case(
        "refusal",
        environment={"memory": int(megabytes * 1e6)},
        folder=folders("one-layer"),
        device="nvidia",
    )
    assert error["kind"] == "Qwen3MemoryError" and error["name"] == "QWEN3_STATUS_OUT_OF_MEMORY"


def test_caches_do_not_fit(run_case: RunCase, folders: Folders) -> None:
    """The call that needs the memory fails, others go on, and memory that is freed is used."""
    folder = folders("one-layer")
    need = run_case("works", folder=folder)["device"]
    report = run_case("memory_limit", environment={"memory": need + 300_000}, folder=folder)
    assert report["text"].startswith("Qwen3MemoryError: inferBatchEx: cannot allocate")
    assert report["peak"] <= need + 300_000
