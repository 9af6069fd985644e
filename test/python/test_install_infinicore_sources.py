"""What install_infinicore.py makes of the sources, and what it knows of an installation."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from infinicore_infer.tools import install_infinicore
from infinicore_infer.tools import install_infinicore_cuda as cuda
from infinicore_infer.tools import install_infinicore_source as sources
from infinicore_infer.tools.install_infinicore_args import parse_args
from infinicore_infer.tools.install_infinicore_build import STAMP

ROOT = Path(__file__).resolve().parents[2]
ROPE = "rope/nvidia/rope_nvidia.cu"
POOL = "    std::optional<T> pop() const {\n        return {std::move(top->data)};\n    }\n"
CUDA_FILE = """target("infiniop-nvidia")
    set_kind("static")
    add_cugencodes("native")
    on_load(function (target)
        local nvcc = find_tool("nvcc")
        if nvcc ~= nil then
            target:add("linkdirs", "stubs")
            target:add("links", "cuda")
        end
        local arch_opt = get_config("cuda_arch")
    end)
    add_cuflags("-Xcompiler=-Wall", "-Xcompiler=-Werror")
    add_cuflags("--extended-lambda")
target_end()
"""


def checkout(folder: Path) -> Path:
    """The parts of InfiniCore's sources that are adapted."""
    head = "".join(
        f'target("{t}")\n    set_kind("shared")\ntarget_end()\n' for t in sources.TARGETS
    )
    files = {
        "xmake.lua": 'add_requires("pybind11")\nif is_mode("debug") then\n'
        f'    add_requires("boost", {{configs = {{}}}})\nend\n{head}'
        'target("infinicore_c_api")\n    set_kind("phony")\n'
        'target_end()\n\ntarget("infinicore")\n    add_packages("pybind11")\ntarget_end()\n',
        "xmake/cpu.lua": '    add_requires("openmp")\n    add_packages("openmp")\n-- kept\n',
        "xmake/nvidia.lua": CUDA_FILE,
        "src/infiniop/devices/pool.h": POOL,
        "src/infiniop/ops/gemm/operator.cc": "",
        "src/infiniop/ops/rope/nvidia/rope_nvidia.cu": sources.KERNELS[ROPE][0],
        "src/infiniop/ops/conv/operator.cc": "",
        "src/infiniop/ops/conv/nvidia/conv.cu": "",
        "include/infiniop.h": "",
        ".git/config": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_adapting(tmp_path: Path) -> None:
    source = sources.copied(checkout(tmp_path / "checkout"), tmp_path / "work")
    assert not (source / ".git").exists()
    sources.patch(source, ["sm_80", "sm_90a", "compute_90"], True, Path("/cuda/lib64"))
    cuda_file = (source / "xmake/nvidia.lua").read_text()
    codes = '"-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a", '
    codes += '"-gencode=arch=compute_90,code=compute_90", {force = true})\n'
    # For nvcc and, which newer versions forget, for the device's linker.
    assert f"add_cuflags({codes}" in cuda_file and f"add_culdflags({codes}" in cuda_file
    for gone in ("native", '"links", "cuda"', "-Werror", "get_config"):
        assert gone not in cuda_file
    header = source / sources.CUB_HEADER.name
    assert f'"--extended-lambda", "-include", "{header}", {{force = true}}' in cuda_file
    assert header.read_text() == sources.CUB_HEADER.read_text()
    main_file = (source / "xmake.lua").read_text()
    assert "pybind11" not in main_file and "boost" not in main_file
    assert main_file.endswith('target("infinicore_c_api")\n    set_kind("phony")\ntarget_end()\n')
    assert main_file.count("-Wl,-rpath,/cuda/lib64") == 3
    assert (source / "xmake/cpu.lua").read_text() == "-- kept\n"
    assert "delete top;" in (source / "src/infiniop/devices/pool.h").read_text()
    folder = source / "src/infiniop/ops"
    assert (folder / ROPE).read_text() == sources.KERNELS[ROPE][0]
    sources.patch_kernels(source)
    assert (folder / ROPE).read_text() == sources.KERNELS[ROPE][1]
    units = [path.name for path in folder.rglob("*.c[cu]")]
    assert sorted(units) == ["operator.cc", "rope_nvidia.cu"]
    # The checkout is as it was.
    assert (tmp_path / "checkout/src/infiniop/devices/pool.h").read_text() == POOL


def test_operators_that_the_backend_looks_up_are_kept() -> None:
    functions = ROOT / "src" / "ops" / "infinicore" / "device" / "functions.h"
    names = re.findall(r"infiniopCreate(\w+)Descriptor\b", functions.read_text())
    used = {name.lower() for name in names if name != "Tensor"}
    assert used == {name.replace("_", "") for name in sources.OPERATORS}


def test_what_an_installation_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = tmp_path / "prefix"
    monkeypatch.setenv("INFINI_ROOT", str(prefix))
    cards = ["9.0"]
    monkeypatch.setattr(cuda, "query_cards", lambda field: cards)
    prefix.mkdir()
    source = checkout(tmp_path / "checkout")

    def install(*arguments: str) -> None:
        flags = install_infinicore.wanted(parse_args(arguments))
        stamp = {
            "version": sources.VERSION,
            "sha256": sources.SHA256,
            "recipe": install_infinicore.RECIPE,
            "flags": flags,
            "files": [],
        }
        (prefix / STAMP).write_text(json.dumps(stamp))

    def current(*arguments: str) -> bool:
        return install_infinicore.main(["--check", *arguments]) == 0

    install("--nv-gpu", "--cuda_arch=sm_90a,sm_80,sm_80")
    assert current("--nv-gpu", "--cuda-arch", "sm_80,sm_90a")
    assert not current("--nv-gpu")  # the card is an sm_90
    assert not current("--nv-gpu", "--cuda-arch", "sm_80")
    assert not current() and current("--if-missing")
    cards.clear()
    assert current("--nv-gpu")  # no card: whatever it was compiled for
    cards.append("9.0")
    install("--nv-gpu")
    assert current("--nv-gpu") and current("--nv-gpu", "--cuda-arch", "sm_90")
    install()
    assert current() and not current("--nv-gpu") and not current("--source", str(source))
    install("--source", str(source))
    assert current("--source", str(source)) and not current() and current("--if-missing")
    (source / "include/infiniop.h").write_text("// changed")
    assert not current("--source", str(source))


STUBS = {
    "cub/version.cuh": "#define CUB_VERSION {version}\n",
    "cuda/std/type_traits": "#include <type_traits>\nnamespace cuda { namespace std {\n"
    "template <class A, class B> using common_type_t = ::std::common_type_t<A, B>;\n}}\n",
}
PROGRAM = """
#define __CUDACC__ 1
#define __host__
#define __device__
#include "install_infinicore_cub.h"
#include <cstdio>
int main() {
#if CUB_VERSION >= 300000
    static_assert(cub::Max()(2, 3.5f) == 3.5f && cub::Min()(2, 3.5f) == 2.0f, "mixed types");
    static_assert(cub::Max()(-1, -2) == -1 && cub::Min()(7u, 7u) == 7u, "equal and negative ones");
    float a = 1, b = 2;
    std::printf("%g %g %g", cub::Max()(a, b), cub::Min()(a, b), cub::Sum()(a, b));
#else
    struct Max {};
    std::printf("left alone");
#endif
}
"""


@pytest.mark.parametrize(
    ("version", "output"), [(300001, "2 1 3"), (200800, "left alone"), (101700, "left alone")]
)
def test_header(tmp_path: Path, version: int, output: str) -> None:
    """What it gives to CUDA 13 alone; nvcc compiles it in scripts/test.sh --with-cuda."""
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.replace("{version}", str(version)))
    (tmp_path / "program.cpp").write_text(PROGRAM)
    command = ["g++", "-std=c++17", "-Wall", "-Werror", "-I", tmp_path]
    command += [
        "-I",
        sources.CUB_HEADER.parent,
        tmp_path / "program.cpp",
        "-o",
        tmp_path / "program",
    ]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)
    assert done.stdout == output
