"""test/gpu/run.sh: not the numbers, but that every way leads to a table or a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from infinicore.conftest import ROOT

TINY = "--model tiny --batch 1 --prompt 8 --past 4 --steps 1 --prefill 8 --copy 1 --gemm 32".split()
TINY += ["--leak-steps", "5"]


def run(*arguments: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(root / "test/gpu/run.sh"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def table_of(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture
def prefix(fake_folder: Path, tmp_path: Path) -> Path:
    """The fake device where an InfiniCore is expected."""
    headers = Path(os.environ.get("INFINI_ROOT") or ROOT / ".infini") / "include"
    (tmp_path / "infini").mkdir()
    (tmp_path / "infini/include").symlink_to(headers)
    (tmp_path / "infini/lib").symlink_to(fake_folder / "lib")
    return tmp_path / "infini"


def check_table(table: dict[str, list[str]]) -> None:
    for dtype in ("f32", "f16", "bf16"):
        assert table[f"self-test {dtype}"][0] == "passed"
        for what in ("parity", "states", "experts"):
            assert table[f"{what} {dtype}, 8 tokens"][1] == "ok"
    assert table["text f32"] == ["equal to the CPU's", "ok"]
    share = table["tiny bf16: decode of 1 after 4"][1]
    assert "30 launches, 4 copies, 1 synchronisations" in share and "% of the copy" in share
    assert "tok/s" in table["tiny bf16: prefill of 8"][0]
    # Four adds more, and the rows of logits are gathered once more.
    remark = table["tiny bf16: decode of 1, without gemm_add"][1]
    assert "34 launches, 5 copies" in remark
    assert table["host memory per decode step"][1] == "too few steps"
    assert table["several devices"][0] == "not measured"


def test_table_of_one_card(prefix: Path) -> None:
    """What needs a second card is a line of the table, not its end."""
    done = run("--no-build", *TINY, INFINI_ROOT=str(prefix))
    assert done.returncode == 0, done.stdout + done.stderr
    check_table(table_of(done))


def test_pack(prefix: Path, fake_folder: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, nothing is built or fetched; as test/gpu/pack.sh lays it out."""
    root = tmp_path / "infinicore_infer_gpu"
    for name in ("pack/lib", "pack/infinicore", "pack/wheels", "test/gpu", "test/data"):
        (root / name).mkdir(parents=True)
    for name in ("run.sh", "measure.py", "device.py"):
        shutil.copy(ROOT / "test/gpu" / name, root / "test/gpu")
    for name in ("scripts", "include", "xmake.lua", "test/data/qwen3-tiny"):
        (root / name).symlink_to(ROOT / name)
    shutil.copytree(prefix / "lib", root / "pack/infinicore/lib")
    for name in ("libinfinicore_infer.so", "libinfinicore_infer_infini.so"):
        shutil.copy(fake_folder.parent / name, root / "pack/lib")
    counter = root / "pack/infinicore/lib/launch_counter.so"
    command = ["bash", ROOT / "test/gpu/counter.sh", prefix, counter, "$ORIGIN"]
    subprocess.run(command, check=True)
    path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    done = run("--only", "text,limits,decode", *TINY, root=root, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = table_of(done)
    assert table["text bf16"][1] == "ok" and table["product of 32 f16"]
    assert "30 launches, 4 copies" in table["tiny bf16: decode of 1 after 4"][1]


def test_a_failed_step_is_a_row(prefix: Path) -> None:
    """The others run, and the exit status tells."""
    only = ["--no-build", "--only", "decode,limits"]
    done = run(*only, *TINY, INFINI_ROOT=str(prefix), FAKE_INFINI_QUIRKS="wrong_rope")
    table = table_of(done)
    assert done.returncode == 1 and table["product of 32 bf16"]
    assert table["step decode"][0] == "FAILED" and "rope bf16" in table["step decode"][1]


def test_time_limit(prefix: Path) -> None:
    """A step that takes too long is stopped; what then has no time is said."""
    done = run(
        "--no-build", "--only", "leak,devices", *TINY, "--leak-steps", "100000000",
        INFINI_ROOT=str(prefix), SECONDS_IN_ALL="10",
    )  # fmt: skip
    table = table_of(done)
    assert done.returncode == 1 and "took more than" in table["step leak"][1]
    assert table["step devices"][0] == "not run"


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
