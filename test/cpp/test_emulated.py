"""Kernel tables of CPUs other than this one: AVX-512 through SIMDe's portable intrinsics, AMX
through our own (emulated/amx.h), NEON under qemu.

All run all of test_kernels, which compares each table with the scalar one. They show that the
kernels compute the right thing, not how fast. On Debian:
apt-get install g++-aarch64-linux-gnu qemu-user libsimde-dev.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from building import ROOT, build, run

INCLUDES = [f"-I{ROOT / name}" for name in ("include", "src", "test/cpp")]
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-pthread", *INCLUDES]
TEST = ROOT / "test/cpp/test_kernels.cpp"
PORTABLE = [
    *(
        ROOT / "src/ops/cpu" / f"{name}.cpp"
        for name in ("formats", "kernels/scalar", "pack/quant", "kernels/dispatch")
    ),
    ROOT / "src/runtime/error.cpp",
    ROOT / "src/runtime/worker_thread.cpp",
]


def compile_all(compiler: str, folder: Path, objects: dict[str, list[str]]) -> list[Path]:
    """Compiles the kernels of tables side by side, each with flags of its own."""
    paths = [folder / f"{name}.o" for name in objects]

    def compile_one(path: Path) -> str:
        source = ROOT / "src/ops/cpu" / f"kernels/isa_{path.stem}.cpp"
        return run([compiler, *FLAGS, *objects[path.stem], "-c", source, "-o", path])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, paths))
    return paths


def only(*tables: str) -> str:
    """The variable that has test_kernels test no other tables."""
    return f" {' '.join(tables)} "


# Objects of the tables of x86-64 beyond AVX2, those with AVX-512 and AMX to be computed lane by
# lane. Compiling SIMDe's loops with optimisation takes far longer than running them without.
LANES = ["-mfma", f"-I{ROOT / 'test/cpp/emulated'}", "-O0"]
AVXVNNI = ["-mavx2", "-mfma", "-mf16c", "-include", f"{ROOT / 'test/cpp/emulated/avxvnni.h'}"]
X86 = {
    "amx": {"avx512amx": LANES},
    "avx512bf16": {"avx512bf16": LANES},
    "avx512vnni": {"avx512vnni": LANES, "avx512vnni_affine": LANES},
    "avx512": {"avx512": LANES, "avx512_affine": LANES},
    "avxvnni": {"avxvnni": AVXVNNI},
}


def test_tables_of_other_cpus_emulated(tmp_path: Path) -> None:
    """Every table of x86-64 that this CPU cannot run: test_cpp.py runs the others as they are."""
    if os.uname().machine != "x86_64":
        pytest.skip("the AVX-512 tables are built on x86-64 only")
    if not Path("/usr/include/simde/x86/avx512.h").exists():
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    release = build("-g", "tests")
    listed = run([release / "test_kernels"], {"QWEN3_TEST_TABLES": only()})
    tables = [name for name in X86 if f"skipped: table {name}," in listed]
    if not tables:
        pytest.skip("this CPU runs every table")
    objects = compile_all("g++", tmp_path, {k: v for name in tables for k, v in X86[name].items()})
    program = tmp_path / "test_kernels"
    # All else is that of the release build, whose tables of the same names are not taken.
    run(["g++", *FLAGS, TEST, *objects, release / "libq3_core.a", "-ldl", "-o", program])
    output = run([program], {"QWEN3_TEST_EMULATED": "1", "QWEN3_TEST_TABLES": only(*tables)})
    for name in tables:
        assert f"table {name}\n" in output


NEON = {
    "neon": "armv8-a",
    "neon_dotprod": "armv8.2-a+dotprod",
    "neon_i8mm": "armv8.2-a+dotprod+i8mm",
}


@pytest.fixture(scope="module")
def neon_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """test_kernels with all tables of AArch64, cross-compiled."""
    compiler = "aarch64-linux-gnu-g++"
    for tool in (compiler, "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    folder = tmp_path_factory.mktemp("neon")
    affine = {f"{name}_affine": NEON[name] for name in ("neon", "neon_dotprod")}
    architectures = {**NEON, **affine}
    # Optimised, they take longer to compile than all runs without.
    flags = {name: ["-O0", f"-march={each}"] for name, each in architectures.items()}
    objects = compile_all(compiler, folder, flags)
    program = folder / "test_kernels"
    run([compiler, *FLAGS, "-O2", "-static", TEST, *PORTABLE, *objects, "-o", program])
    return program


@pytest.mark.parametrize(
    ("cpu", "best"),
    [("cortex-a57", "neon"), ("cortex-a76", "neon-dotprod"), ("max", "neon-i8mm")],
)
def test_neon_under_qemu(neon_program: Path, cpu: str, best: str) -> None:
    """The best NEON table that a CPU can run, and that it takes no better one for such."""
    output = run(["qemu-aarch64", "-cpu", cpu, neon_program], {"QWEN3_TEST_TABLES": only(best)})
    tables = [name.replace("_", "-") for name in NEON]
    assert [name for name in tables if f"table {name}\n" in output] == [best]
    for name in tables:
        assert (f"skipped: table {name}," in output) == (tables.index(name) > tables.index(best))
