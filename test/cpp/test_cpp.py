"""Runs the C++ and C test programs: release, ASan + UBSan, and TSan builds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from building import ROOT, build, run, xmake

PROGRAMS = sorted(p.stem for p in (ROOT / "test" / "cpp").glob("test_*.c*"))
# InfiniCore brings its own OpenMP threads, which ThreadSanitizer cannot follow, so the sanitizer
# builds leave it out. Programs that start no threads have nothing to show ThreadSanitizer, whose
# build has no AVX-512 (xmake.lua).
SANITIZED = {"address": [name for name in PROGRAMS if name != "test_infinicore_ops"]}
ONE_THREAD = ("test_kernels", "test_machine", "test_runtime")
SANITIZED["thread"] = [name for name in SANITIZED["address"] if name not in ONE_THREAD]


@pytest.fixture(scope="session")
def release_tests() -> Path:
    """Builds the test programs in the already configured release tree."""
    return build("-g", "tests")


@cache
def sanitizer_tests(kind: str) -> Path:
    """Configures and builds a sanitizer tree of its own, apart from the release build."""
    output = ROOT / "build" / "sanitized" / kind
    env = {"XMAKE_CONFIGDIR": str(output / "configuration")}
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
    xmake("f", "-c", *flags, env=env)
    xmake("build", "-y", "-g", "tests", env=env)
    return next((output / "linux").glob("*/debug"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_release(release_tests: Path, name: str) -> None:
    program = release_tests / name
    if name == "test_infinicore_ops" and not program.exists():
        pytest.skip("built without InfiniCore: its operators are not tested")
    run([program])


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in SANITIZED.items() for name in names]
)
def test_sanitized(kind: str, name: str) -> None:
    run([sanitizer_tests(kind) / name])


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
