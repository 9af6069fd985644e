"""Models over several fake devices: two sums a layer, and failures of one device.

That results are right and do not depend on the batch: test_model_tests.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from infinicore.conftest import Refusal, RunCase
from infinicore.test_device_failures import STATUS
from infinicore.test_device_models import TOLERANCE
from infinicore.test_launches import LAYERS, expected

Folders = Callable[[str], Path]


@pytest.mark.parametrize("stream", ["eager", "jitter"])
@pytest.mark.parametrize("ndev", [2, 4])
def test_logits_whenever_streams_run(
    run_case: RunCase, folders: Folders, ndev: int, stream: str
) -> None:
    """Four query heads over two KV heads: with four devices KV heads are on two each."""
    environment = {"count": ndev, "stream": stream}
    distances = run_case("parity", environment=environment, folder=folders("f32"), ndev=ndev)
    assert max(distances[0]) < TOLERANCE["f32"], distances


@pytest.mark.parametrize("device", ["ascend", "moore"])
def test_other_routes(run_case: RunCase, folders: Folders, device: str) -> None:
    """Interleaved rope and sums without ``add`` work on slices too."""
    distances = run_case(
        "parity",
        environment={"count": 2, "device": device},
        folder=folders("f32"),
        device=device,
        ndev=2,
    )
    assert max(distances[0]) < TOLERANCE["f32"], distances


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("ndev", [2, 4])
@pytest.mark.parametrize(("batch", "ntok", "past"), [(1, 1, 5), (4, 9, 0)])
def test_launches(
    run_case: RunCase, folders: Folders, name: str, ndev: int, batch: int, ntok: int, past: int
) -> None:
    """Every device does what a single one does, and two sums a layer."""
    report = run_case(
        "launches",
        environment={"count": ndev},
        folder=folders(name),
        ndev=ndev,
        batch=batch,
        ntok=ntok,
        past=past,
    )
    # The ranks' results are added up before they are added to the residual stream.
    each = {**expected(LAYERS[name], batch, ntok, past), "Add": 2 * LAYERS[name]}
    assert report["launches"] == {kind: n * ndev for kind, n in each.items()}
    assert report["sums"] == 2 * LAYERS[name] * ndev
    assert (report["syncs"], report["h2d"], report["d2h"]) == (ndev, 2 * ndev, ndev)
    assert (report["mallocs"], report["created"], report["pageable"]) == (0, 0, 0)


# ------------------------------------------------------------------ failures


KINDS = ["malloc", "copy", "sync", "launch", "execute", "descriptor", "set_device"]


# One call, made with the first device current, connects all.
@pytest.mark.parametrize(
    ("kind", "device"), [*((kind, device) for kind in KINDS for device in (0, 1)), ("comm", 0)]
)
def test_every_call_may_fail(
    run_case: RunCase,
    folders: Folders,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    device: int,
) -> None:
    """Every third call on one device fails; the step fails, names it, and is repeated."""
    monkeypatch.setenv("QWEN3_INFINICORE_SELF_TEST", "0")  # as many calls as everything else
    report = run_case(
        "failing",
        environment={"count": 2},
        folder=folders("one-layer"),
        kind=f"{kind}@{device}",
        at_most=2000,
        ndev=2,
        step=3,
    )
    status = STATUS.get(kind, "INTERNAL_ERROR")
    told = {text for text in report["texts"] if not text.endswith(": ")}
    assert report["n"] > 0 and told
    assert {text for text in told if f"(QWEN3_STATUS_{status})" not in text} == set()
    if kind == "comm":
        assert all("infinicclCommInitAll" in text for text in told)
        return
    assert report["phases"]["step"] > 0
    # A task that fails on one device may fail a sum on both, and the first in order is named.
    # The devices are connected by the caller's thread, which names the device.
    names = [f"rank {device} of 2: ", f"infinirtSetDevice failed on nvidia:{device}: "]
    if kind == "execute":
        names += [f"rank {1 - device} of 2: "]
    assert {text for text in told if not any(name in text for name in names)} == set()


def test_devices_go_away(
    run_case: RunCase, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From some call on everything fails: exceptions, never a crash or a hang."""
    monkeypatch.setenv("QWEN3_INFINICORE_SELF_TEST", "0")
    arguments = {"environment": {"count": 2}, "folder": folders("one-layer"), "ndev": 2}
    assert run_case("losing", step=97, **arguments) > 500


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_device_that_cannot_sum(run_case: RunCase, folders: Folders, device: int, n: int) -> None:
    """The other device waits for ever; the threads do not, and the model says what to do."""
    texts = run_case(
        "cut_link", environment={"count": 2}, folder=folders("one-layer"), device=device, n=n
    )
    assert f"rank {device} of 2: " in texts[0]
    assert all("destroy this model and create it again" in text for text in texts), texts


@pytest.mark.parametrize(
    ("count", "options", "status", "text"),
    [
        (2, {"ndev": 4}, "DEVICE_NOT_FOUND", "rank 2 of 4: device nvidia:2 does not exist"),
        (2, {"ndev": 2, "dev_ids": [1, 1]}, "BAD_PARAM", "dev_ids[1] is 1"),
        (2, {"ndev": 3}, "BAD_PARAM", "can be cut over 1, 2 or 4 devices"),
        (4, {"ndev": 2, "dev_ids": [3, -1]}, "BAD_PARAM", "dev_ids[1] is -1"),
    ],
)
def test_refusals(
    refusal: Refusal,
    count: int,
    options: dict[str, object],
    status: str,
    text: str,
) -> None:
    error = refusal(count, options)
    assert error["name"] == f"QWEN3_STATUS_{status}"
    assert text in error["text"]


def test_chosen_devices(run_case: RunCase, folders: Folders) -> None:
    """Any distinct devices in any order."""
    run_case("works", environment={"count": 4}, folder=folders("f32"), ndev=2, dev_ids=[3, 1])
