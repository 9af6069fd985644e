#!/usr/bin/env python3
"""Builds InfiniCore 0.1.0 from its source archive, or a checkout, and installs it into a prefix.

The archive comes from pip's configured package index (or from ``--sdist FILE``) and must have the
pinned SHA-256. Only what the engine links is built: infinirt, infiniop, infiniccl and the headers.
The build happens in a temporary folder; files reach the prefix one atomic rename at a time and a
stamp is written last, so an interrupted run is repaired by the next one and a finished
installation is recognised at once. Nothing outside the prefix and the temporary folder is written.

Examples::

    python scripts/install_infinicore.py                       # CPU only
    python scripts/install_infinicore.py --nv-gpu --ccl        # NVIDIA GPUs, NCCL
    python scripts/install_infinicore.py --nv-gpu --toolkit pypi            # no CUDA toolkit here
    python scripts/install_infinicore.py --nv-gpu --cuda-arch sm_80,sm_90   # for other machines
    python scripts/install_infinicore.py --nv-gpu --source ~/InfiniCore     # a newer one
    python scripts/install_infinicore.py --prefix ~/.infini --ascend-npu
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from infinicore_infer.tools import install_infinicore_cuda as cuda
from infinicore_infer.tools.install_infinicore_args import (
    DEVICES,
    NEWER_DEVICES,
    chosen_flags,
    parse_args,
)
from infinicore_infer.tools.install_infinicore_build import (
    STAMP,
    build,
    check_compilers,
    commit,
    find_xmake,
    has_library,
    locked,
    read_stamp,
)
from infinicore_infer.tools.install_infinicore_run import InstallError, Runner
from infinicore_infer.tools.install_infinicore_source import (
    NAME,
    SHA256,
    VERSION,
    copied,
    download,
    identity,
    patch,
    patch_kernels,
    unpack,
)

__all__ = ["VERSION", "InstallError", "Runner", "download", "main", "unpack"]

#: Raised when the way of building changes, so that old installations are rebuilt; the second number
#: is for accelerators.
RECIPE, ACCELERATOR_RECIPE = 1, 3


def wanted(args: argparse.Namespace) -> dict[str, str]:
    """What an installation must have been made with to be the one that is asked for."""
    flags = chosen_flags(args)
    if any(flags[name] == "y" for name in DEVICES):
        flags["recipe"] = str(ACCELERATOR_RECIPE)
    architectures = args.cuda_arch
    if flags["nv-gpu"] == "y" and not architectures:
        architectures = cuda.architectures_of_cards()
    if architectures:
        flags["cuda-arch"] = ",".join(architectures)
    if args.operators:
        flags["operators"] = args.operators
    if args.kernels != "mended":
        flags["kernels"] = args.kernels
    if args.source:
        flags["source"] = identity(args.source)
    return flags


def title(args: argparse.Namespace) -> str:
    """What is built, for people."""
    return f"{NAME} of {args.source}" if args.source else f"{NAME} {VERSION}"


def check_nvidia(args: argparse.Namespace) -> None:
    """Checks the GPU, the CUDA toolkit and NCCL; a toolkit of PyPI's is checked when it is made."""
    architectures = cuda.chosen_architectures(args.cuda_arch)
    if args.toolkit == "system":
        cuda.check_toolkit(cuda.find_toolkit(args.cuda), architectures)
    if args.ccl == "y" and not os.environ.get("NCCL_ROOT") and not has_library("libnccl.so"):
        raise InstallError(
            "--ccl needs NCCL with its headers: on Debian and Ubuntu install libnccl-dev, "
            "or set NCCL_ROOT to a folder with include/ and lib/libnccl.so"
        )


def check_requirements(args: argparse.Namespace) -> None:
    """Checks what the chosen devices need."""
    for name in NEWER_DEVICES:
        if getattr(args, name) != "n":
            raise InstallError(
                f"InfiniCore {VERSION} has no --{name}: build a newer InfiniCore with it "
                "(python scripts/install.py in its checkout) and set INFINI_ROOT"
            )
    check_compilers()
    for name, (_, variables, default) in DEVICES.items():
        if getattr(args, name) != "y":
            continue
        if name == "nv-gpu":
            check_nvidia(args)
        elif name == "sugon-dcu":
            raise InstallError(
                f"InfiniCore {VERSION} cannot be built for DCUs: its build file names a linker "
                "toolchain that the archive does not contain. Build a newer InfiniCore with "
                "--hygon-dcu and set INFINI_ROOT"
            )
        elif variables and not any(os.environ.get(v) for v in variables):
            if default is None or not Path(default).is_dir():
                raise InstallError(
                    f"--{name} needs the vendor's toolkit: source its environment script, or set "
                    f"{' or '.join(variables)} to its folder"
                )


def is_current(prefix: Path, flags: dict[str, str], any_flags: bool) -> bool:
    """Whether the prefix already holds what would be installed.

    An installation may have more than was asked for by name: architectures, where none is named.
    """
    stamp = read_stamp(prefix)
    if stamp is None or stamp.get("recipe") != RECIPE or "version" not in stamp:
        return False
    if any_flags:
        return True
    has = stamp.get("flags")
    if not isinstance(has, dict) or (stamp["version"], stamp.get("sha256")) != (VERSION, SHA256):
        return False
    return all(has.get(name) == value for name, value in flags.items()) and all(
        name in flags or name == "cuda-arch" for name in has
    )


def make(args: argparse.Namespace, work: Path, stage: Path, runner: Runner) -> None:
    """Fetches, adapts and builds; the result is in the staging folder."""
    flags = chosen_flags(args)
    options = [f"--{name}={value}" for name, value in flags.items()]
    environment: dict[str, str] = {}
    architectures: list[str] = []
    toolkit = None
    if flags["nv-gpu"] == "y":
        architectures = cuda.chosen_architectures(args.cuda_arch)
        if args.toolkit == "pypi":
            folder = args.toolkit_dir or cuda.default_folder()
            toolkit = cuda.toolkit_from_pypi(Path(os.path.abspath(folder)), runner)
        else:
            toolkit = cuda.find_toolkit(args.cuda)
        cuda.check_toolkit(toolkit, architectures)
        options.append(f"--cuda={toolkit}")
        # xmake asks PATH for nvcc, too.
        environment = {"CUDA_HOME": str(toolkit), "CUDA_PATH": str(toolkit)}
        environment["PATH"] = f"{toolkit / 'bin'}:{os.environ.get('PATH', '')}"
    if args.source:
        source = copied(args.source, work)
        if 'option("graph")' in (source / "xmake.lua").read_text(encoding="utf-8"):
            options.append("--graph=y")
    else:
        if args.sdist is None:
            runner.step(f"downloading {NAME} {VERSION}")
        source = unpack(args.sdist or download(work, runner), work)
    only_used = (args.operators or ("used" if args.source else "all")) == "used"
    patch(source, architectures, only_used, toolkit / "lib64" if toolkit else None)
    if architectures and args.kernels == "mended":
        patch_kernels(source)
    devices = ", ".join(name for name in DEVICES if flags[name] == "y") or "CPU"
    runner.step(f"compiling ({' '.join([devices, *architectures])})")
    build(options, args.jobs, source, stage, environment, runner)


def install(args: argparse.Namespace) -> bool:
    """Installs into ``args.prefix``; returns whether there was anything to do."""
    prefix = Path(os.path.abspath(args.prefix.expanduser()))
    if not args.force and is_current(prefix, wanted(args), args.if_missing):
        return False
    foreign = (prefix / "lib" / "libinfiniop.so").exists() and not (prefix / STAMP).exists()
    if foreign and not args.force:
        raise InstallError(
            f"{prefix} holds an InfiniCore that this script did not install. Use it by setting "
            "INFINI_ROOT, choose another --prefix, or replace it with --force"
        )
    find_xmake()
    check_requirements(args)
    runner = Runner(args.verbose)
    try:
        prefix.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(f"cannot make the prefix: {error}") from error
    with locked(prefix):
        if not args.force and is_current(prefix, wanted(args), args.if_missing):
            return False  # another run did it meanwhile
        for leftover in prefix.glob(".staging-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with (
            tempfile.TemporaryDirectory(prefix="infinicore-") as scratch,
            tempfile.TemporaryDirectory(prefix=".staging-", dir=prefix) as staging,
        ):
            make(args, Path(scratch), Path(staging), runner)
            stamp: dict[str, object] = {"name": NAME, "version": VERSION, "sha256": SHA256}
            commit(Path(staging), prefix, {**stamp, "recipe": RECIPE, "flags": wanted(args)})
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    args = parse_args(argv)
    start = time.monotonic()
    if args.check:
        prefix = args.prefix.expanduser()
        current = is_current(prefix, wanted(args), args.if_missing)
        print(f"infinicore: {title(args)} is {'' if current else 'not '}installed in {prefix}")
        return 0 if current else 1
    # Leave nothing behind when told to stop: the exception empties the temporary folders.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if args.requirements:
            check_requirements(args)
            print("infinicore: what the build needs is here")
            return 0
        changed = install(args)
    except (InstallError, OSError) as error:
        print(f"install_infinicore: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install_infinicore: interrupted, nothing was installed", file=sys.stderr)
        return 128 + signal.SIGINT
    if changed:
        spent = time.monotonic() - start
        print(f"infinicore: {title(args)} installed into {args.prefix} ({spent:.0f} s)")
    else:
        print(f"infinicore: {title(args)} is installed in {args.prefix}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
