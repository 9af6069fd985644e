"""The fake accelerator itself: it lets correct programs pass and catches each broken rule."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from infinicore.conftest import ROOT, with_root

# What the call returns, what the violation says (None: none), what is left allocated.
EXPECTED: dict[str, tuple[Any, str | None, dict[str, int]]] = {
    "nothing": ([[0] * 4, [[1, 2, 3, 4], [5, 6, 7, 8]]], None, {}),
    "host_pointer": (1, "is host memory", {}),
    "device_pointer_as_host": (1, "the source is device memory", {}),
    "staging_reused": (1, "the host changed the source before the stream had read it", {}),
    "freed_in_flight": (None, "memory is freed before infinirtMemcpyAsync has used it", {}),
    "freed_twice": ([0, 1], "not an allocation of device 0", {}),
    "used_after_free": (1, "is not allocated", {}),
    "out_of_bounds": (1, "16 bytes at offset 0 of an allocation of 12", {}),
    "overlapping": (1, "output and input 1 overlap", {}),
    "no_device_on_thread": ([1], "the calling thread has set no nvidia device", {}),
    "stream_of_other_device": (1, "stream of device 0 used while device 1 is current", {}),
    "memory_of_other_device": (1, "memory of another device", {}),
    "descriptor_outlives_handle": (None, "1 descriptors outlive the handle", {}),
    "descriptor_destroyed_in_flight": (None, "destroyed before the stream has run it", {}),
    "small_workspace": ([[13, 0], [2, 4, 6, 8]], None, {}),
    "leak": (None, None, {"device": 1, "handle": 1, "descriptor": 1}),
    "softmax_of_wide_rows": ([0, True], None, {}),
    "all_reduce": ([[0, 0, 0], [[11, 22, 33]] * 2], None, {}),
    "events": ([[1, 2, 3, 4], 0], None, {}),
}
# Of the fake that is compiled against newer InfiniCore's declarations.
GRAPHS: dict[str, tuple[Any, str | None, dict[str, int]]] = {
    "graph": ([[0] * 4, [[5, 6, 7, 8], [9, 10, 11, 12]]], None, {}),
    "graph_waits": ([0, 1], "infinirtStreamSynchronize while a stream of the device records", {}),
    "graph_allocates": ([0, 1], "infinirtMalloc while a stream of the device records", {}),
    "graph_of_pageable_memory": ([0, 1], "a copy from or to pageable memory", {}),
    "graph_of_freed_memory": (1, "infinirtMemcpyAsync uses memory that was freed", {}),
    "graph_destroyed_in_flight": (None, "destroyed before the stream has run it", {}),
}


def run(
    folder: Path, *names: str, module: str = "misuse", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"infinicore.{module}", *names],
        cwd=ROOT,
        env=with_root(
            folder,
            PYTHONPATH=f"{ROOT / 'scripts'}:{ROOT / 'test'}",
            FAKE_INFINI_COUNT="2",
            **environment,
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def reports(fake_folder: Path) -> dict[str, Any]:
    """What each case reports, all from one process."""
    process = run(fake_folder, *EXPECTED)
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0 and len(lines) == len(EXPECTED), process.stderr
    newer = run(fake_folder.parent / "fake_newer", *GRAPHS, module="misuse_graphs")
    more = [json.loads(line) for line in newer.stdout.splitlines()]
    assert newer.returncode == 0 and len(more) == len(GRAPHS), newer.stderr
    return dict(zip([*EXPECTED, *GRAPHS], lines + more, strict=True))


@pytest.mark.parametrize("name", [*EXPECTED, *GRAPHS])
def test_rule(reports: dict[str, Any], name: str) -> None:
    result, violation, live = {**EXPECTED, **GRAPHS}[name]
    report = reports[name]
    assert report["result"] == result
    assert report["live"] == live
    if violation is None:
        assert report["violations"] == []
    else:
        assert violation in report["violations"][0]


def test_host_cannot_touch_device_memory(fake_folder: Path) -> None:
    assert run(fake_folder, "host_touches_device").returncode == -signal.SIGSEGV


def test_softmax_can_be_right(fake_folder: Path) -> None:
    process = run(fake_folder, "softmax_of_wide_rows", FAKE_INFINI_QUIRKS="")
    assert json.loads(process.stdout)["result"] == [0, False]
