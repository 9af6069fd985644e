"""InfiniCore's sources for ``install_infinicore``: fetched, or copied, and adapted."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from infinicore_infer.tools.install_infinicore_cuda import gencode
from infinicore_infer.tools.install_infinicore_run import InstallError, Runner

NAME = "infinicore"
VERSION = "0.1.0"
SHA256 = "f11f9ab33ad3a2dd943daf4c1d987162e86e1239abb1a178791bf8a9a2ece560"
TARGETS = ("infinirt", "infiniop", "infiniccl")
#: What the InfiniCore backend calls; 0.1.0 has the first seven.
OPERATORS = (
    "gemm",
    "add",
    "rms_norm",
    "rope",
    "causal_softmax",
    "swiglu",
    "rearrange",
    "add_rms_norm",
    "embedding",
    "silu_and_mul",
    "paged_caching",
    "paged_attention",
    "paged_attention_prefill",
)
#: Given back to InfiniCore's CUDA sources where CUDA 13 took it away.
CUB_HEADER = Path(__file__).with_name("install_infinicore_cub.h")

#: A build back end for pip that never runs the archive's own setup code (``pip download`` asks a
#: source archive for its metadata, InfiniCore's setup.py would do that with setuptools).
STUB_BACKEND = f'''
import os

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = "{NAME}-{VERSION}.dist-info"
    os.makedirs(os.path.join(metadata_directory, folder))
    with open(os.path.join(metadata_directory, folder, "METADATA"), "w") as f:
        f.write("Metadata-Version: 2.1\\nName: {NAME}\\nVersion: {VERSION}\\n")
    with open(os.path.join(metadata_directory, folder, "WHEEL"), "w") as f:
        f.write("Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return folder
'''


def download(work: Path, runner: Runner) -> Path:
    """Fetches the source archive with pip into ``work``."""
    backend = work / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").write_text("", encoding="utf-8")
    (backend / "build_meta.py").write_text(STUB_BACKEND, encoding="utf-8")
    target = work / "download"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--no-binary", ":all:", "--no-build-isolation"]
    command += ["--dest", str(target), f"{NAME}=={VERSION}"]
    # While pip builds this package, its variables for our build backend must not reach this pip.
    foreign = ("_PYPROJECT_HOOKS_", "PEP517_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env |= {"PYTHONPATH": str(backend.parent), "PIP_ROOT_USER_ACTION": "ignore"}
    runner.run(command, work, env, f"downloading {NAME} {VERSION}")
    archives = sorted(target.glob("*.tar.gz")) if target.is_dir() else []
    if len(archives) != 1:
        raise InstallError(f"pip did not leave one {NAME} archive: {[a.name for a in archives]}")
    return archives[0]


def unpack(archive: Path, work: Path) -> Path:
    """Checks the archive's hash and unpacks it; returns the source folder."""
    try:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"cannot read the source archive: {error}") from error
    if digest != SHA256:
        raise InstallError(
            f"{archive.name} is not the {NAME} {VERSION} that this script knows:\n"
            f"  expected SHA-256 {SHA256}\n  found            {digest}"
        )
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(work, filter="data")
        else:  # before 3.10.12 / 3.11.4; the hash says that the content is the known one
            tar.extractall(work)
    return work / f"{NAME}-{VERSION}"


def copied(checkout: Path, work: Path) -> Path:
    """Copies a checkout of InfiniCore, whose build files are then adapted; returns the copy."""
    for part in ("xmake.lua", "include/infiniop.h", "src/infiniop"):
        if not (checkout / part).exists():
            raise InstallError(
                f"--source {checkout} is no checkout of InfiniCore: it has no {part}"
            )
    target = work / "source"
    unwanted = shutil.ignore_patterns(".git", "build", ".xmake", "python", "test", "submodules")
    shutil.copytree(checkout, target, ignore=unwanted, symlinks=True)
    return target


def identity(checkout: Path) -> str:
    """Something that changes when a file of the checkout does."""
    digest = hashlib.sha256()
    for folder in ("include", "src", "xmake"):
        for path in sorted((checkout / folder).rglob("*")):
            if path.is_file():
                stat = path.stat()
                digest.update(
                    f"{path.relative_to(checkout)} {stat.st_size} {stat.st_mtime_ns}\n".encode()
                )
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------ adapting


def replace_once(path: Path, old: str, new: str) -> None:
    """Replaces the one occurrence of ``old`` in a file."""
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise InstallError(f"{path.name} of {NAME} {VERSION} is not as expected ({old!r})")
    path.write_text(text.replace(old, new), encoding="utf-8")


def patch(source: Path, architectures: Sequence[str], only_used: bool, rpath: Path | None) -> None:
    """Adapts InfiniCore's build files, 0.1.0's or those of a checkout, and mends a leak.

    Args:
        source: the unpacked archive, or a copy of a checkout.
        architectures: what CUDA sources are compiled for; empty without --nv-gpu.
        only_used: leave out the operators that the engine does not call.
        rpath: where CUDA's libraries lie, for libinfiniop.so and libinfinirt.so to find them.
    """
    patch_main(source, rpath)
    patch_cpu(source)
    patch_pool(source)
    if architectures:
        patch_cuda(source, architectures)
    if only_used:
        keep_operators(source)


def patch_main(source: Path, rpath: Path | None) -> None:
    """The libraries alone, which find each other, and OpenMP's.

    The Python binding, the C++ interface, the tests and the packages that they need go, since xmake
    would fetch package repositories for them. libinfiniop.so uses OpenMP's run time without naming
    it: it now does. The libraries find each other (RUNPATH ``$ORIGIN``), so that no LD_LIBRARY_PATH
    is needed.
    """
    main_file = source / "xmake.lua"
    text = main_file.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^ *add_requires\(.*\)\n", "", text)
    end = text.find('target("infinicore_c_api")\n')
    end = text.find("target_end()", end)
    if end < 0:
        raise InstallError("xmake.lua has no target infinicore_c_api: which InfiniCore is this?")
    main_file.write_text(text[:end] + "target_end()\n", encoding="utf-8")
    omp = (
        '    if has_config("omp") then\n        add_shflags("-fopenmp", {force = true})\n    end\n'
    )
    paths = ["$ORIGIN", *([str(rpath)] if rpath else [])]
    lines = "".join(f'    add_shflags("-Wl,-rpath,{path}", {{force = true}})\n' for path in paths)
    for target, more in (("infinirt", ""), ("infiniop", omp), ("infiniccl", "")):
        head = f'target("{target}")\n    set_kind("shared")\n'
        replace_once(main_file, head, head + lines + more)


def patch_cpu(source: Path) -> None:
    """OpenMP is the compiler's, not a package of xmake's."""
    cpu_file = source / "xmake" / "cpu.lua"
    text = cpu_file.read_text(encoding="utf-8")
    text = re.sub(r'(?m)^ *add_(requires|packages)\("openmp"\)\n', "", text)
    cpu_file.write_text(text, encoding="utf-8")


def patch_pool(source: Path) -> None:
    """``pop`` forgot its node: 32 bytes of host memory a product, 8 GB an hour of fast decoding."""
    leak = "return {std::move(top->data)};"
    mended = (
        "T value = std::move(top->data);\n        delete top;\n        return {std::move(value)};"
    )
    for path in sorted((source / "src").rglob("pool.h")):
        text = path.read_text(encoding="utf-8")
        if text.count(leak) == 1:
            path.write_text(text.replace(leak, mended), encoding="utf-8")


def patch_cuda(source: Path, architectures: Sequence[str]) -> None:
    """Names the architectures, for the compiler and for the device's linker.

    "native" asks a program that CUDA 13 cannot compile, and then means sm_75; the option of newer
    versions does not reach the linker, whose result then holds no kernels. Also: nothing of
    libcuda.so is used, and warnings of other compilers are no errors.
    """
    header = source / CUB_HEADER.name
    shutil.copyfile(CUB_HEADER, header)
    path = source / "xmake" / "nvidia.lua"
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'(?m)^ *add_cugencodes\("native"\)\n', "", text)
    text = text.replace('get_config("cuda_arch")', '""')  # neither the option nor what it sees
    text = text.replace('            target:add("links", "cuda")\n', "")
    text = text.replace(', "-Xcompiler=-Werror"', "")
    path.write_text(text, encoding="utf-8")
    codes = ", ".join(f'"{gencode(name)}"' for name in architectures)
    head = 'target("infiniop-nvidia")\n    set_kind("static")\n'
    lines = "".join(
        f"    {function}({codes}, {{force = true}})\n"
        for function in ("add_cuflags", "add_culdflags")
    )
    replace_once(path, head, head + lines)
    lambdas = 'add_cuflags("--extended-lambda")'
    replace_once(
        path, lambdas, f'add_cuflags("--extended-lambda", "-include", "{header}", {{force = true}})'
    )


#: File -> (what 0.1.0 has, what we make of it).
KERNELS = {
    "causal_softmax/cuda/kernel.cuh": (
        "if (width + blockIdx.x >= threadIdx.x + height) {",
        "if (width + blockIdx.x >= col + height) {",
    ),
    "rms_norm/nvidia/rms_norm_nvidia.cu": (
        "    if (_opaque->internal->maxThreadsPerBlock() == CUDA_BLOCK_SIZE_1024) {\n",
        "    if (dim <= 512) {\n"
        "        CHECK_STATUS(launchKernel<128>(batch_size, nhead, dim, y, _info.atype, "
        "stride_y_batch, stride_y_nhead, x, stride_x_batch, stride_x_nhead, w, _info.wtype, "
        "_info.epsilon, cuda_stream));\n"
        "    } else if (_opaque->internal->maxThreadsPerBlock() == CUDA_BLOCK_SIZE_1024) {\n",
    ),
    "rope/nvidia/rope_nvidia.cu": (
        "int nthreads = std::max(int(info.table_dim), block_size);",
        "int nthreads = std::min((int(info.table_dim) + 31) / 32 * 32, block_size);",
    ),
}


def patch_kernels(source: Path) -> None:
    """Makes what a long prompt waits for quick, and right.

    Norms of heads and rope start 1024 threads for 128 and 64 numbers: they get as many as work. The
    causal softmax compares the column with the thread's number, so it masks wrongly in rows wider
    than a block; then the backend has to mask them beforehand. A checkout that has other code there
    is left as it is.
    """
    for name, (old, new) in KERNELS.items():
        path = source / "src" / "infiniop" / "ops" / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.count(old) == 1:
            path.write_text(text.replace(old, new), encoding="utf-8")


def keep_operators(source: Path) -> None:
    """Removes the operators that the engine does not call: half of the time to compile."""
    folder = source / "src" / "infiniop" / "ops"
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in OPERATORS:
            for unit in [*path.rglob("*.cc"), *path.rglob("*.cu")]:
                unit.unlink()
