"""test/gpu/run.sh: not the numbers, but that every way leads to a table or a reason."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from infinicore.conftest import ROOT

TINY = "--model tiny --batch 1 --prompt 8 --past 4 --steps 1 --prefill 8 --copy 1 --gemm 32".split()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "test/gpu/run.sh"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_table_of_one_card(fake_folder: Path, tmp_path: Path) -> None:
    """What needs a second card is a line of the table, not its end."""
    headers = Path(os.environ.get("INFINI_ROOT") or ROOT / ".infini") / "include"
    (tmp_path / "include").symlink_to(headers)
    (tmp_path / "lib").symlink_to(fake_folder / "lib")
    done = run("--no-build", *TINY, INFINI_ROOT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "|" in line]
    table = {row[0]: row[1:] for row in rows}
    for dtype in ("f32", "f16", "bf16"):
        assert table[f"parity random {dtype}"][1] == "ok"
    assert "34 launches, 5 copies, 1 synchronisations" in table["tiny bf16: decode step of 1"][0]
    assert "tok/s" in table["tiny bf16: prefill of 8"][0]
    assert table["several devices"][0] == "not measured"


@pytest.mark.parametrize(
    ("listed", "text"),
    [(None, "nvidia-smi is not there"), ("", "nvidia-smi -L lists no GPU")],
)
def test_no_card(tmp_path: Path, listed: str | None, text: str) -> None:
    """Said before anything is fetched or built."""
    for name in ("bash", "dirname", "grep"):
        path = next(Path(p) / name for p in ("/bin", "/usr/bin") if (Path(p) / name).exists())
        (tmp_path / name).symlink_to(path)
    if listed is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/bash\nprintf '{listed}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    done = run(PATH=str(tmp_path), INFINI_ROOT="", INFINICORE_FLAGS="")
    assert done.returncode == 1 and text in done.stderr


def test_other_devices_need_flags() -> None:
    done = run("--device", "ascend", INFINI_ROOT="", INFINICORE_FLAGS="")
    assert done.returncode == 1 and "set INFINICORE_FLAGS to what" in done.stderr
