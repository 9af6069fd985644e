"""Commands that ``install_infinicore`` runs, and what their known failures mean."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class InstallError(Exception):
    """Something the user has to know about; the text says what to do."""


#: What a build's output shows -> what is wrong and what mends it. The first that fits is told.
KNOWN_FAILURES: tuple[tuple[str, str], ...] = (
    (
        r"unsupported GNU version|unsupported clang version",
        "this CUDA toolkit is older than the C++ compiler and refuses it: install an older g++ and "
        "name it with NVCC_CCBIN=g++-12, or take a newer toolkit (--toolkit pypi)",
    ),
    (
        r"Unsupported gpu architecture|is not a supported.*gpu-architecture",
        "this CUDA toolkit does not know one of the architectures of --cuda-arch: "
        "`nvcc --list-gpu-arch` says which it knows",
    ),
    (
        r'namespace "?cub"? has no member|‘(Max|Min|Sum)’ is not a member of ‘cub’',
        "this CUDA toolkit has a CUB that InfiniCore does not know, and our compatibility header "
        "does not mend it: please report the version of nvcc",
    ),
    (
        r"cicc: (command )?not found|cicc: No such file",
        "the CUDA toolkit has no nvvm/bin/cicc: it is incomplete (from PyPI: nvidia-nvvm)",
    ),
    (
        r"cannot find -l(cublas|cublasLt|cudart)\b",
        "the CUDA toolkit lacks lib64/libcublas.so or libcudart.so: install its libraries, "
        "or take --toolkit pypi",
    ),
    (
        r"(nccl\.h: No such file|cannot find -lnccl)",
        "--ccl needs NCCL with its headers: install libnccl-dev, or set NCCL_ROOT",
    ),
    (r"No space left on device", "the disk is full: the build needs 2 GB in TMPDIR"),
    (
        r"fatal error: Killed|signal terminated program|Killed\s+signal|nvcc.*(died|killed)",
        "a compiler was stopped, most likely for want of memory (up to 2 GB each): --jobs 1",
    ),
)


def advice_for(output: str) -> str | None:
    """What a known failure in the output of a build means."""
    for pattern, advice in KNOWN_FAILURES:
        if re.search(pattern, output):
            return advice
    return None


class Runner:
    """Runs commands, quietly unless asked; a failure carries the end of their output."""

    def __init__(self, verbose: bool) -> None:
        """Store whether the output is let through."""
        self.verbose = verbose

    def step(self, text: str) -> None:
        """Says what happens next."""
        print(f"infinicore: {text}", flush=True)

    def run(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], what: str) -> None:
        """Runs one command in ``cwd`` and raises InstallError when it fails."""
        lines: list[str] = []
        try:
            with subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line.rstrip("\n"))
                    if self.verbose:
                        print(lines[-1], flush=True)
        except OSError as error:
            raise InstallError(f"{what} failed: {error}") from error
        if process.returncode == 0:
            return
        advice = advice_for("\n".join(lines))
        tail = "" if self.verbose else "\n".join(lines[-40:])
        text = f"{what} failed with status {process.returncode}\n{tail}".rstrip()
        raise InstallError(f"{text}\n{advice}" if advice else text)
