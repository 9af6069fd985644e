"""Builds the fake accelerator and runs cases on it, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from building import ROOT, build
from libinfinicore_infer import load_library
from reference.random_checkpoint import CheckpointSpec, make_checkpoint

DEMO = ROOT / "test" / "data" / "qwen3-tiny"
RunCase = Callable[..., Any]
Refusal = Callable[[int, dict[str, object]], dict[str, str]]


def with_root(root: Path, **variables: str) -> dict[str, str]:
    """The environment of a process that finds InfiniCore in ``root``."""
    return {**os.environ, "INFINI_ROOT": str(root), **variables}


SPECS = {
    "f32": CheckpointSpec("f32", dctx=700),
    "bf16": CheckpointSpec("bf16", dtype="bf16", bias=True, tied=False, nh=6, nkvh=3, seed=1),
    "f16": CheckpointSpec("f16", dtype="f16", d=48, nh=4, nkvh=1, seed=2),
    "one-layer": CheckpointSpec("one-layer", nlayer=1, d=32, di=48, dvoc=64, dctx=300, seed=3),
    # Head sizes that newer InfiniCore's paged attention takes.
    "wide-heads": CheckpointSpec(
        "wide-heads", dtype="bf16", bias=True, nh=4, nkvh=2, dh=64, dctx=700, seed=5
    ),
    "three-wide": CheckpointSpec(
        "three-wide", dtype="bf16", nlayer=3, tied=False, nh=2, nkvh=1, dh=128, dctx=700, seed=6
    ),
    # Enough heads for scores to need several ranges of rows.
    "many-heads": CheckpointSpec(
        "many-heads", dtype="bf16", nlayer=1, d=32, nh=16, nkvh=8, di=48, dvoc=64, dctx=2304, seed=7
    ),
    "three-layers": CheckpointSpec("three-layers", nlayer=3, d=32, di=48, dvoc=64, seed=4),
}


@pytest.fixture(scope="session")
def fake_folder() -> Path:
    """The root of the fake InfiniCore, built in the configured release tree."""
    if b"infinicore=none" in load_library().qwen3BuildInfo(None):
        pytest.skip("the InfiniCore module was not built")
    return build("-g", "fake") / "fake"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a checkpoint of SPECS, once; "demo" is the trained demo model."""
    parent = tmp_path_factory.mktemp("device-models")

    def get(name: str) -> Path:
        if name == "demo":
            return DEMO
        return parent / name if (parent / name).exists() else make_checkpoint(SPECS[name], parent)

    return get


@pytest.fixture(scope="session")
def run_case(fake_folder: Path) -> RunCase:
    """Runs a function of cases.py on the fake accelerator and returns its result.

    ``expect`` is the exit status; the standard error is returned when it is not 0. Other keywords:
    ``environment``, the FAKE_INFINI_ variables; ``newer``, to use the module and the fake that are
    compiled against newer InfiniCore's declarations; and the function's own arguments.
    """

    def run(
        case: str,
        *,
        environment: dict[str, Any] | None = None,
        newer: bool = False,
        expect: int = 0,
        **arguments: Any,
    ) -> Any:
        variables = {f"FAKE_INFINI_{k.upper()}": str(v) for k, v in (environment or {}).items()}
        folder = fake_folder.parent / "fake_newer" if newer else fake_folder
        if newer:
            variables["INFINICORE_INFER_MODULE"] = str(folder / "libinfinicore_infer_infini.so")
        result = subprocess.run(
            [sys.executable, "-m", "infinicore.cases", case, json.dumps(arguments, default=str)],
            cwd=ROOT,
            env=with_root(folder, PYTHONPATH=f"{ROOT / 'scripts'}:{ROOT / 'test'}", **variables),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        text = f"{case} {arguments} exited {result.returncode}:\n{result.stdout}{result.stderr}"
        assert result.returncode == expect, text[-8000:]
        return json.loads(result.stdout.splitlines()[-1]) if expect == 0 else result.stderr

    return run


@pytest.fixture
def refusal(run_case: RunCase, folders: Callable[[str], Path]) -> Refusal:
    """Makes a model on ``count`` fake devices with options; returns the error's name and text."""

    def refuse(count: int, options: dict[str, object]) -> dict[str, str]:
        arguments = {"folder": folders("one-layer"), "device": "nvidia", **options}
        error: dict[str, str] = run_case("refusal", environment={"count": count}, **arguments)
        return error

    return refuse
