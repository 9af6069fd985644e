"""Kernel tables of CPUs not at hand: AVX-512 through SIMDe's portable intrinsics, NEON under qemu.

Both run all of test_kernels, which compares each table with the scalar one. They show that the
kernels compute the right thing, not how fast. On Debian:
apt-get install g++-aarch64-linux-gnu qemu-user libsimde-dev.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INCLUDES = [f"-I{ROOT / name}" for name in ("include", "src", "test/cpp")]
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-pthread", *INCLUDES]
PORTABLE = [
    ROOT / "test/cpp/test_kernels.cpp",
    *(ROOT / "src/ops/cpu" / f"{name}.cpp" for name in ("kernels_scalar", "quant", "dispatch")),
    ROOT / "src/runtime/error.cpp",
]


def run(command: list[str | Path], env: dict[str, str] | None = None) -> str:
    """Runs a command and returns its output; a failure shows it."""
    result = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, (
        f"{command[0]} exited {result.returncode}:\n{result.stdout[-4000:]}"
    )
    return result.stdout


def test_avx512_emulated(tmp_path: Path) -> None:
    """Every table of x86-64, those with AVX-512 computed lane by lane."""
    if os.uname().machine != "x86_64":
        pytest.skip("the AVX-512 tables are built on x86-64 only")
    if not Path("/usr/include/simde/x86/avx512.h").exists():
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    objects = []
    for name, flags in {
        "avx512": ["-mfma", f"-I{ROOT / 'test/cpp/emulated'}"],
        "avx512vnni": ["-mfma", f"-I{ROOT / 'test/cpp/emulated'}"],
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
    }.items():
        objects.append(tmp_path / f"{name}.o")
        source = ROOT / "src/ops/cpu" / f"kernels_{name}.cpp"
        run(["g++", *flags, *FLAGS, "-c", source, "-o", objects[-1]])
    program = tmp_path / "test_kernels"
    run(["g++", *FLAGS, *PORTABLE, *objects, "-o", program])
    output = run([program], {"QWEN3_TEST_ALL_TABLES": "1"})
    assert "table avx512vnni" in output
    assert "table avx512\n" in output


def test_neon_under_qemu(tmp_path: Path) -> None:
    """The NEON table, cross-compiled."""
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for tool in (compiler, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    program = tmp_path / "test_kernels"
    neon = ROOT / "src/ops/cpu/kernels_neon.cpp"
    run([compiler, *FLAGS, "-O2", "-static", *PORTABLE, neon, "-o", program])
    assert "table neon" in run([emulator, program])
