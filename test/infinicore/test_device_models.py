"""Models on the fake accelerator: kinds of devices, routes, the self-test, faults, threads.

That results are right and do not depend on the batch: test_model_tests.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from infinicore.conftest import Refusal, RunCase, with_root

Folders = Callable[[str], Path]

# Largest difference between logits, in standard deviations: rounding of activations, layer by
# layer. A wrong mask, position or weight gives more than 1.
TOLERANCE = {"f32": 1e-4, "f16": 0.05, "bf16": 0.3}
NEWER_OPERATORS = {"none", "add_rms_norm", "embedding", "silu_and_mul"}
NEWER_OPERATORS |= {"paged_attention", "graphs"}


@pytest.mark.parametrize("stream", ["eager", "jitter"])
def test_logits_whenever_the_stream_runs(run_case: RunCase, folders: Folders, stream: str) -> None:
    environment = {"stream": stream}
    distances = run_case(
        "parity", environment=environment, folder=folders("f32"), max_step_tokens=16
    )
    assert max(distances[0]) < TOLERANCE["f32"], distances


ROUTES = {
    "nvidia": {"causal"},
    "metax": {"causal"},
    "iluvatar": {"causal"},
    "cambricon": {"rope_neox"},
    "kunlun": {"rope_neox"},
    "moore": {"add", "causal"},
    "ascend": {"rope_neox", "add"},
}


@pytest.mark.parametrize("device", ROUTES)
def test_devices(run_case: RunCase, folders: Folders, device: str) -> None:
    """What 0.1.0 lacks on a device is found at create and replaced."""
    environment = {"device": device}
    for name in ("f32", "bf16"):  # without and with biases
        distances = run_case(
            "parity", environment=environment, folder=folders(name), device=device, dtypes=["f32"]
        )
        assert max(distances[0]) < TOLERANCE["f32"], distances
    info = run_case("info", environment=environment, folder=folders("f32"), device=device)
    assert set(info["avoids"].split(",")) - NEWER_OPERATORS == ROUTES[device]
    assert info["self_test"] == "passed"


@pytest.mark.parametrize("route", ["rope_neox", "add", "beta0", "rope_neox,add,beta0"])
def test_routes(
    run_case: RunCase, folders: Folders, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    """The other routes give the CPU backend's logits too; with the self-test and without."""
    monkeypatch.setenv("QWEN3_INFINICORE_AVOID", route)
    for wanted in ("1", "0"):
        monkeypatch.setenv("QWEN3_INFINICORE_SELF_TEST", wanted)
        distances = run_case("parity", folder=folders("bf16"), dtypes=list(TOLERANCE))
        for dtype, of_dtype in zip(TOLERANCE, distances, strict=True):
            assert max(of_dtype) < TOLERANCE[dtype], distances


def test_routes_that_do_not_exist(
    run_case: RunCase, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_INFINICORE_AVOID", "add,ad")
    error = run_case("refusal", folder=folders("one-layer"), device="nvidia")
    assert error["name"] == "QWEN3_STATUS_BAD_PARAM"
    assert 'QWEN3_INFINICORE_AVOID names "ad"' in error["text"]


# ------------------------------------------------------------------ the self-test


OPERATORS = ["gemm", "add", "rms_norm", "rope", "causal_softmax", "swiglu", "rearrange"]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("operator", OPERATORS)
def test_wrong_operators_are_named(
    run_case: RunCase, folders: Folders, operator: str, dtype: str
) -> None:
    environment = {"quirks": f"wrong_{operator}"}
    error = run_case(
        "refusal",
        environment=environment,
        folder=folders("one-layer"),
        device="nvidia",
        dtype=dtype,
    )
    assert error["name"] == "QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED"
    assert "on nvidia:0 fails the self-test" in error["text"]
    assert re.search(
        rf"{operator} {dtype} \[.*\] is wrong: largest error \S+, limit ", error["text"]
    )
    others = [name for name in OPERATORS if f"{name} {dtype} [" in error["text"]]
    assert others == [operator]


@pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "add"])
def test_missing_operators_are_named(run_case: RunCase, folders: Folders, operator: str) -> None:
    environment = {"quirks": f"no_{operator}"}
    error = run_case(
        "refusal", environment=environment, folder=folders("one-layer"), device="nvidia"
    )
    assert error["name"] == "QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED"
    assert f"{operator} f32 [" in error["text"]
    assert "is refused: InfiniCore's infiniopCreate" in error["text"]
    assert "device type not supported (status 5)" in error["text"]


@pytest.mark.parametrize("newer", [False, True])
def test_kernels_of_another_architecture(run_case: RunCase, folders: Folders, newer: bool) -> None:
    """Nothing but cuBLAS's products runs then, and of all launches rearrange's alone fails."""
    error = run_case(
        "refusal",
        environment={"quirks": "other_architecture"},
        folder=folders("one-layer"),
        device="nvidia",
        newer=newer,
    )
    assert error["name"] == "QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED"
    assert (
        "runs none of its kernels on nvidia:0: it was probably built for another" in error["text"]
    )
    assert "`qwen3-install-infinicore --nv-gpu --force`" in error["text"]
    assert "infiniopRearrange failed" in error["text"]


def test_self_test_can_be_skipped(
    run_case: RunCase, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_INFINICORE_SELF_TEST", "0")
    environment = {"quirks": "wrong_swiglu"}
    info = run_case("info", environment=environment, folder=folders("one-layer"))
    assert info["self_test"] == "skipped"
    assert run_case("parity", environment=environment, folder=folders("f32"))[0][0] > 0.1


# ------------------------------------------------------------------ faults of 0.1.0


def test_gemm_that_reads_c(run_case: RunCase, folders: Folders) -> None:
    """Found by the self-test; C is then cleared before each product."""
    environment = {"quirks": "gemm_reads_c"}
    assert "beta0" in run_case("info", environment=environment, folder=folders("f32"))["avoids"]
    for name in ("f32", "bf16"):
        distances = run_case("parity", environment=environment, folder=folders(name))
        assert max(distances[0]) < TOLERANCE[name], distances


@pytest.mark.parametrize("device", ["nvidia", "moore"])
def test_memory_does_not_grow_with_the_prompt(
    run_case: RunCase, folders: Folders, device: str
) -> None:
    """All of a device's memory but the caches: scores of a long prompt are taken in parts."""
    sizes = run_case(
        "memory_of_prompts",
        environment={"device": device},
        folder=folders("f32"),
        device=device,
        lengths=[64, 300, 690],
        max_step_tokens=64,
    )
    # A gemm's workspace is the fake's own idea; it grows with the columns of a block only.
    assert max(sizes) - min(sizes) < 300_000, sizes


@pytest.mark.parametrize("device", ["nvidia", "moore"])
def test_wide_prompts_are_masked(
    run_case: RunCase, folders: Folders, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """0.1.0's CUDA causal softmax lets later keys through beyond 512 columns; ours does not."""
    folder, environment = folders("f32"), {"device": device}
    distance = run_case(
        "long_prompt", environment=environment, folder=folder, device=device, ntok=690
    )
    assert distance < TOLERANCE["f32"]
    # Where the operator is right, as in newer versions, nothing is masked beforehand.
    launches = {}
    for quirks in ("softmax_block:512", "other:0"):
        report = run_case(
            "launches", environment={"quirks": quirks}, folder=folder, batch=1, ntok=690, past=0
        )
        launches[quirks] = report["launches"]["Rearrange"]
    assert launches["softmax_block:512"] > launches["other:0"]
    # The same fault where the backend does not expect it, to show that the test would see it.
    monkeypatch.setenv("QWEN3_INFINICORE_SELF_TEST", "0")
    narrow = {"quirks": "softmax_block:64"}
    assert run_case("long_prompt", environment=narrow, folder=folder, ntok=500) > 1


# Each of the routes once: it takes some seconds.
@pytest.mark.parametrize(
    ("device", "dtype"), [("nvidia", None), ("nvidia", "f32"), ("moore", None), ("ascend", None)]
)
def test_demo_text(run_case: RunCase, folders: Folders, dtype: str | None, device: str) -> None:
    texts = {
        run_case(
            "text",
            environment={"device": device},
            folder=folders("demo"),
            device=place,
            prompt="Once upon a time",
            dtype=dtype,
        )
        for place in ("cpu", device)
    }
    assert len(texts) == 1 and len(texts.pop()) > 40


# ------------------------------------------------------------------ threads and devices


def test_any_thread(run_case: RunCase, folders: Folders) -> None:
    run_case("threads", environment={"count": 2}, folder=folders("one-layer"))


@pytest.mark.parametrize("stream", ["lazy", "jitter"])
def test_models_side_by_side(run_case: RunCase, folders: Folders, stream: str) -> None:
    environment = {"count": 2, "stream": stream}
    run_case("two_models", environment=environment, folder=folders("one-layer"))


@pytest.mark.parametrize(
    ("count", "options", "status", "text"),
    [
        (2, {"dev_ids": [2]}, "DEVICE_NOT_FOUND", "InfiniCore sees 2 nvidia devices"),
        (1, {"dev_ids": [-1]}, "", "-1"),
        (0, {}, "DEVICE_NOT_FOUND", "InfiniCore sees 0 nvidia devices"),
        (1, {"device": "metax"}, "DEVICE_TYPE_NOT_SUPPORTED", "--metax-gpu"),
    ],
)
def test_no_such_device(
    refusal: Refusal,
    count: int,
    options: dict[str, object],
    status: str,
    text: str,
) -> None:
    error = refusal(count, options)
    assert error["name"].endswith(status)
    assert text in error["text"]


# ------------------------------------------------------------------ the doctor


@pytest.mark.parametrize(
    ("environment", "problems", "advice"),
    [
        ({"count": 2}, [], ""),
        ({"device": "ascend"}, [], ""),
        ({"quirks": "no_swiglu"}, ["self-test nvidia:0"], "use another device"),
        ({"quirks": "wrong_rope"}, ["self-test nvidia:0"], "use another device"),
        ({"memory": 1000}, ["self-test nvidia:0"], "end other programs that use nvidia:0"),
        ({"fail": "init:1"}, ["devices"], "driver"),
    ],
)
def test_doctor(
    fake_folder: Path, environment: dict[str, object], problems: list[str], advice: str
) -> None:
    """It finds the devices, tries each, and has advice for each that does not work."""
    variables = {f"FAKE_INFINI_{name.upper()}": str(v) for name, v in environment.items()}
    result = subprocess.run(
        [sys.executable, "-m", "infinicore_infer.tools.doctor", "--json"],
        env=with_root(fake_folder, **variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    findings = json.loads(result.stdout)
    assert [f["topic"] for f in findings if f["state"] == "problem"] == problems, findings
    assert result.returncode == bool(problems)
    assert all(advice in f["advice"] for f in findings if f["state"] == "problem")
    if not problems:
        device, count = environment.get("device", "nvidia"), int(str(environment.get("count", 1)))
        tests = [f for f in findings if f["topic"].startswith(f"self-test {device}")]
        assert len(tests) == count
        assert all("operators passed" in f["text"] for f in tests)
        assert all(("replaced: rope_neox, add" in f["text"]) == (device == "ascend") for f in tests)
