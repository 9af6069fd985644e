"""`xmake install`, then a C program through pkg-config and one through CMake."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from building import ROOT, exclusive, xmake
from libinfinicore_infer import load_library

HEADER = ROOT / "include" / "infinicore_infer" / "models" / "qwen3.h"
(VERSION,) = re.findall(r'QWEN3_VERSION_STRING "(\d+\.\d+\.\d+)"', HEADER.read_text("utf-8"))
MAJOR, MINOR, _ = VERSION.split(".")
PROGRAM = """
#include <infinicore_infer.h>
#include <stdio.h>
int main(void) {
    printf("%s %s\\n", qwen3Version(), qwen3BuildInfo(NULL));
    return createKVCache(NULL) == NULL && qwen3LastStatus() == QWEN3_STATUS_NULL_POINTER ? 0 : 1;
}
"""
CMAKE = f"""
cmake_minimum_required(VERSION 3.16)
project(consumer C)
find_package(infinicore_infer {MAJOR}.{MINOR} REQUIRED)
add_executable(consumer consumer.c)
target_link_libraries(consumer PRIVATE infinicore_infer::infinicore_infer)
"""


def run(command: list[str], cwd: Path, **env: str) -> str:
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}:\n{result.stdout}"
    return result.stdout


def library_info() -> bytes:
    return bytes(load_library().qwen3BuildInfo(None))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("install")
    with exclusive():
        xmake("install", "-o", path, "infinicore_infer")
    return path


def test_installed_files(prefix: Path) -> None:
    installed = {str(p.relative_to(prefix)) for p in prefix.rglob("*") if not p.is_dir()}
    module = (
        set() if b"infinicore=none" in library_info() else {"lib/libinfinicore_infer_infini.so"}
    )
    assert installed == module | {
        "include/infinicore_infer.h",
        "include/infinicore_infer/models/qwen3.h",
        "lib/libinfinicore_infer.so",
        f"lib/libinfinicore_infer.so.{MAJOR}",
        f"lib/libinfinicore_infer.so.{VERSION}",
        "lib/pkgconfig/infinicore_infer.pc",
        "lib/cmake/infinicore_infer/infinicore_infer-config.cmake",
        "lib/cmake/infinicore_infer/infinicore_infer-config-version.cmake",
    }


def test_pkg_config_consumer(prefix: Path, tmp_path: Path) -> None:
    tool = shutil.which("pkg-config") or shutil.which("pkgconf")
    pc = prefix / "lib/pkgconfig"
    if tool:
        flags = run(
            [tool, "--cflags", "--libs", "infinicore_infer"], tmp_path, PKG_CONFIG_PATH=str(pc)
        ).split()
    else:  # the same two lines, read by hand
        text = (pc / "infinicore_infer.pc").read_text()
        fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        flags = [
            part.replace("${libdir}", f"{prefix}/lib").replace("${includedir}", f"{prefix}/include")
            for part in (fields["Cflags"] + " " + fields["Libs"]).split()
        ]
    (tmp_path / "consumer.c").write_text(PROGRAM)
    run(
        [
            "gcc",
            "-Wall",
            "-Werror",
            "consumer.c",
            "-o",
            "consumer",
            *flags,
            f"-Wl,-rpath,{prefix}/lib",
        ],
        tmp_path,
    )
    assert run(["./consumer"], tmp_path).startswith(f"{VERSION} version={VERSION} isa=")


def test_cmake_consumer(prefix: Path, tmp_path: Path) -> None:
    cmake = shutil.which("cmake") or str(ROOT / ".venv/bin/cmake")
    if not Path(cmake).exists():
        pytest.skip("no cmake on this machine: the CMake package was not tried")
    (tmp_path / "consumer.c").write_text(PROGRAM)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    run([cmake, "-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}"], tmp_path)
    run([cmake, "--build", "build"], tmp_path)
    assert f"version={VERSION}" in run(["build/consumer"], tmp_path)
