"""Mistakes put into the InfiniCore backend on purpose: the fake accelerator has to notice each."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from infinicore.conftest import ROOT, RunCase

Folders = Callable[[str], Path]
BACKEND = ROOT / "src" / "ops" / "infinicore"

# file, what is replaced, by what, the case that runs, its arguments, what it then says
MUTANTS: dict[str, tuple[str, str, str, str, dict[str, Any], str]] = {
    "logits are read before they have arrived": (
        "nodes.cpp",
        r"\n        device_->synchronize\(\);\n        (staging_busy_ = false;\n        for )",
        r"\n        \1",
        "works",
        {},
        "the model produced -?nan",
    ),
    "staging buffers are written while in use": (
        "nodes.cpp",
        r"(if \(staging_busy_\).*\n)        device_->synchronize\(\);\n",
        r"\1",
        "failing",
        {"kind": "launch", "at_most": 400},
        "the host changed the source before the stream had read it",
    ),
    "a buffer is freed while in use": (
        "device/buffers.cpp",
        r"\n        device_->settle\(\);  // nothing may still use it\n",
        r"\n",
        "works",
        {},
        "memory is freed before infiniop.* has used it",
    ),
    "a host pointer goes to an operator": (
        "nodes.cpp",
        r"matrix\(weight\.weight\.data\(\)",
        r"matrix(const_cast<char *>(embed_host_.data())",
        "works",
        {},
        "infiniopGemm, tensor 2: .* is host memory",
    ),
    "an operator is used without its device": (
        "nodes.cpp",
        r"(::readLogits\(.*\n)    DeviceScope .*\n",
        r"\1",
        "works",
        {},
        "handle of device 0 used while device -1 is current",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant(
    fake_folder: Path,
    run_case: RunCase,
    folders: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    file, pattern, replacement, case, arguments, text = MUTANTS[name]
    source, count = re.subn(pattern, replacement, (BACKEND / file).read_text("utf-8"), count=1)
    assert count == 1, f"{file} has changed: {pattern}"
    name_of_copy = Path(file).name
    (tmp_path / name_of_copy).write_text(source, "utf-8")
    release = fake_folder.parent
    (entry,) = (ROOT / "build/.objs/infinicore_infer_infini/linux").glob(
        "*/release/src/ops/infinicore/module.cpp.o"
    )
    module = tmp_path / "libinfinicore_infer_infini.so"
    # What the mutant defines is not taken from the archives.
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-w", tmp_path / name_of_copy, entry]
    command += [release / "libq3_infinicore.a", release / "libq3_core.a", "-o", module]
    command += [f"-I{ROOT / 'src'}", f"-I{ROOT / 'include'}", "-isystem", include_folder()]
    command += ["-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic", "-ldl", "-lpthread"]
    subprocess.run([str(part) for part in command], check=True)
    monkeypatch.setenv("INFINICORE_INFER_MODULE", str(module))
    monkeypatch.setenv("QWEN3_INFINICORE_SELF_TEST", "0")  # so that the mistake shows in a step
    output = run_case(case, expect=1, folder=folders("one-layer"), **arguments)
    assert re.search(text, output), output[-3000:]


def include_folder() -> Path:
    """Where the release build found InfiniCore's headers."""
    return Path(os.environ.get("INFINI_ROOT") or ROOT / ".infini") / "include"
