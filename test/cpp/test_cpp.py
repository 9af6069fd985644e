"""Runs the C++ and C test programs: release, ASan + UBSan, and TSan builds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
XMAKE = ROOT / ".venv" / "bin" / "xmake"
PROGRAMS = sorted(p.stem for p in (ROOT / "test" / "cpp").glob("test_*.c*"))
# InfiniCore brings its own OpenMP threads, which ThreadSanitizer cannot follow, so the sanitizer
# builds leave it out.
SANITIZED = [name for name in PROGRAMS if name != "test_infinicore_ops"]


def run(command: list[str | Path], env: dict[str, str] | None = None, timeout: float = 900) -> str:
    """Runs a command at the repository root and returns its output; a failure shows it."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "XMAKE_ROOT": "y", "OMP_WAIT_POLICY": "passive", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, f"{command} exited {result.returncode}:\n{result.stdout[-6000:]}"
    return result.stdout


@pytest.fixture(scope="session")
def release_tests() -> Path:
    """Builds the test programs in the already configured release tree."""
    run([XMAKE, "build", "-g", "tests"])
    return next((ROOT / "build" / "linux").glob("*/release"))


@pytest.fixture(scope="session", params=["address", "thread"])
def sanitizer_tests(request: pytest.FixtureRequest) -> Path:
    """Configures and builds a sanitizer tree of its own, apart from the release build."""
    kind = str(request.param)
    env = {"XMAKE_CONFIGDIR": str(ROOT / "build" / f".config-{kind}")}
    output = ROOT / "build" / kind
    flags = [
        "-y",
        "-m",
        "debug",
        "--require=no",
        "--infinicore=n",
        f"--sanitizer={kind}",
        "-o",
        output,
    ]
    run([XMAKE, "f", "-c", *flags], env)
    run([XMAKE, "build", "-g", "tests"], env)
    return next((output / "linux").glob("*/debug"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_release(release_tests: Path, name: str) -> None:
    program = release_tests / name
    if name == "test_infinicore_ops" and not program.exists():
        pytest.skip("built without InfiniCore: its operators are not tested")
    run([program])


@pytest.mark.parametrize("name", SANITIZED)
def test_sanitized(sanitizer_tests: Path, name: str) -> None:
    run([sanitizer_tests / name])


def test_isa_objects_export_nothing_inline() -> None:
    """No inline function compiled with ISA flags may replace its portable copy at link time."""
    folder = ROOT / "build" / ".objs" / "q3_core"
    objects = [path for isa in ("avx*", "neon*") for path in folder.rglob(f"isa_{isa}.cpp.o")]
    assert objects, "the release build has no kernels for an instruction set"
    for path in objects:
        weak = [
            line for line in run(["nm", "-C", path]).splitlines() if " W " in line or " V " in line
        ]
        assert not weak, weak
