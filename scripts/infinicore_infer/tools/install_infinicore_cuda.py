"""CUDA for ``install_infinicore``: the toolkit, made of PyPI's packages if wished, and the cards.

Nothing here imports anything outside the standard library: the installer runs before there is an
environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from infinicore_infer.paths import CHECKOUT
from infinicore_infer.tools.install_infinicore_run import InstallError, Runner

#: CUDA's major version -> the oldest driver that runs its programs.
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
#: What a folder must have to be a toolkit that InfiniCore can be built with.
PARTS = ("bin/nvcc", "include/cuda_runtime.h", "include/cublas_v2.h", "lib64/libcublas.so")
#: Where toolkits are installed unless somebody says otherwise.
USUAL = Path("/usr/local")
#: Libraries that the PyPI packages have under their soname only.
UNVERSIONED = ("cudart", "cublas", "cublasLt")


# ------------------------------------------------------------------ cards


def query_cards(field: str) -> list[str]:
    """What nvidia-smi says of every card; nothing where there is none, or no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines if done.returncode == 0 else []


def architectures_of_cards() -> list[str]:
    """The architectures of this machine's cards: ``["sm_90"]``."""
    matches = (re.fullmatch(r"(\d+)\.(\d)", text) for text in query_cards("compute_cap"))
    return sorted({f"sm_{match[1]}{match[2]}" for match in matches if match})


def chosen_architectures(named: Sequence[str] | None) -> list[str]:
    """The architectures to compile for: those named, else those of the cards."""
    if named:
        return list(named)
    found = architectures_of_cards()
    if not found:
        raise InstallError(
            "no NVIDIA GPU answers (nvidia-smi --query-gpu=compute_cap): name the architecture "
            "that InfiniCore is compiled for, such as --cuda-arch sm_80 (A100), sm_86 (RTX 30), "
            "sm_89 (RTX 40, L40), sm_90 (H100, H200), sm_120 (RTX 50). A kernel compiled for "
            "another one does nothing and says nothing"
        )
    return found


def gencode(architecture: str) -> str:
    """The option of nvcc and nvlink for an architecture: sm_NN is code, compute_NN is PTX."""
    virtual = "compute_" + architecture.split("_", 1)[1]
    return f"-gencode=arch={virtual},code={architecture}"


# ------------------------------------------------------------------ the toolkit


def find_toolkit(cuda: Path | None) -> Path:
    """The folder of the toolkit that a build would use; its parts are checked."""
    if cuda:
        check_parts(cuda, f"--cuda {cuda}")
        return cuda
    tried = []
    folders = [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    on_path = shutil.which("nvcc")
    folders += [Path(on_path).resolve().parent.parent] if on_path else []
    folders += [USUAL / "cuda", *sorted(USUAL.glob("cuda-*"), reverse=True)]
    for folder in folders:
        if not os.access(folder / "bin" / "nvcc", os.X_OK):
            continue
        lacks = missing_parts(folder)
        if not lacks:
            return folder
        tried.append(f"{folder} lacks {', '.join(lacks)}")
    if tried:
        raise InstallError(
            f"no complete CUDA toolkit: {'; '.join(tried)} (an nvcc on PATH may be a script that "
            "calls another one: name the toolkit's own folder with --cuda DIR), or take "
            "--toolkit pypi"
        )
    raise InstallError(
        "--nv-gpu needs the CUDA toolkit (nvcc), version 11, 12 or 13: install it, name it with "
        "--cuda DIR or CUDA_HOME, or have it made of PyPI's packages with --toolkit pypi"
    )


def missing_parts(folder: Path) -> list[str]:
    """The parts of a toolkit that a folder lacks."""
    return [part for part in PARTS if not (folder / part).exists()]


def check_parts(folder: Path, what: str) -> None:
    """Raises InstallError when the folder is no complete toolkit."""
    lacks = missing_parts(folder)
    if lacks:
        raise InstallError(f"{what} is no CUDA toolkit: it has no {', no '.join(lacks)}")


def nvcc_output(toolkit: Path, option: str) -> str:
    """What the toolkit's nvcc prints for an option; nothing when it fails."""
    command = [str(toolkit / "bin" / "nvcc"), option]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def check_toolkit(toolkit: Path, architectures: Sequence[str]) -> None:
    """Checks the toolkit's version against the driver, and that it knows the architectures."""
    match = re.search(r"release (\d+)\.(\d+)", nvcc_output(toolkit, "--version"))
    if not match:
        raise InstallError(f"{toolkit / 'bin' / 'nvcc'} --version does not tell a version")
    major, version = int(match[1]), f"{match[1]}.{match[2]}"
    if major not in OLDEST_DRIVER:
        raise InstallError(f"{toolkit} is CUDA {version}: InfiniCore needs CUDA 11, 12 or 13")
    drivers = [
        int(text.split(".")[0]) for text in query_cards("driver_version") if text[0] in "123456789"
    ]
    if drivers and min(drivers) < OLDEST_DRIVER[major]:
        raise InstallError(
            f"{toolkit} is CUDA {version}, whose programs need driver {OLDEST_DRIVER[major]} or "
            f"newer; this machine has {min(drivers)}. Update the driver, or name an older toolkit "
            "with --cuda DIR"
        )
    known = set(re.findall(r"compute_\w+", nvcc_output(toolkit, "--list-gpu-arch")))
    unknown = [
        a for a in architectures if f"compute_{a.split('_', 1)[1].rstrip('af')}" not in known
    ]
    if known and unknown:
        raise InstallError(
            f"CUDA {version} does not compile for {', '.join(unknown)}: it knows "
            f"{', '.join(sorted(known, key=lambda n: int(re.sub('[^0-9]', '', n))))}. "
            "Name another toolkit with --cuda DIR (CUDA 12 is the last for sm_50 to sm_70)"
        )


# ------------------------------------------------------------------ PyPI


def default_folder() -> Path:
    """Where a toolkit made of PyPI's packages goes."""
    return (CHECKOUT or Path.home() / ".cache" / "infinicore_infer") / "build" / "cuda"


def toolkit_from_pypi(folder: Path, runner: Runner) -> Path:
    """Makes a toolkit of the packages pinned in scripts/requirements/cuda.txt; returns its folder.

    They hold nvcc, headers and libraries but no tree that nvcc finds itself in: lib64 and the
    libraries' short names are missing. No root and none of NVIDIA's own sites are needed.
    """
    if CHECKOUT is None:
        raise InstallError("--toolkit pypi needs the repository: it has the packages' versions")
    requirements = CHECKOUT / "scripts" / "requirements" / "cuda.txt"
    stamp = folder / ".requirements"
    if (
        stamp.is_file()
        and stamp.read_text() == requirements.read_text()
        and not missing_parts(folder)
    ):
        return folder
    runner.step(f"fetching the CUDA toolkit from the package index into {folder}")
    packages = folder.with_name(f"{folder.name}.packages")
    for old in (packages, folder):
        shutil.rmtree(old, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", str(packages), "-r", str(requirements)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    runner.run(command, folder.parent, os.environ, "fetching the CUDA toolkit's packages")
    trees = sorted((packages / "nvidia").glob("cu[0-9]*"))
    if len(trees) != 1:
        raise InstallError(f"the CUDA packages hold {len(trees)} trees nvidia/cuNN, expected one")
    trees[0].rename(folder)
    shutil.rmtree(packages, ignore_errors=True)
    (folder / "lib64").symlink_to("lib")
    for name in UNVERSIONED:
        for library in sorted((folder / "lib").glob(f"lib{name}.so.*")):
            (folder / "lib" / f"lib{name}.so").unlink(missing_ok=True)
            (folder / "lib" / f"lib{name}.so").symlink_to(library.name)
    check_parts(folder, f"what the packages gave in {folder}")
    stamp.write_text(requirements.read_text())
    return folder
