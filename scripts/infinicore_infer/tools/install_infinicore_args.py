"""The command line of ``install_infinicore``."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from infinicore_infer.paths import CHECKOUT
from infinicore_infer.tools.install_infinicore_source import VERSION

#: Device switches: name -> (help, environment variables of which one must be set, default folder).
DEVICES: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "nv-gpu": ("NVIDIA GPUs (CUDA 11 to 13)", (), None),
    "ascend-npu": ("Huawei Ascend NPUs", ("ASCEND_HOME", "ASCEND_TOOLKIT_HOME"), None),
    "cambricon-mlu": ("Cambricon MLUs", ("NEUWARE_HOME",), "/usr/local/neuware"),
    "metax-gpu": ("MetaX GPUs", ("MACA_PATH", "MACA_HOME", "MACA_ROOT"), None),
    "moore-gpu": ("Moore Threads GPUs", ("MUSA_ROOT", "MUSA_HOME", "MUSA_PATH"), None),
    "iluvatar-gpu": ("Iluvatar GPUs", (), None),
    "kunlun-xpu": ("Kunlun XPUs", ("KUNLUN_HOME",), None),
    "sugon-dcu": ("Hygon/Sugon DCUs", (), None),
}

#: Device switches of newer versions, refused with an explanation.
NEWER_DEVICES = ("qy-gpu", "ali-ppu")

#: Other switches: name -> (help, default of this script).
OPTIONS: dict[str, tuple[str, str]] = {
    "ccl": ("collective communication between accelerators (NCCL, HCCL, ...)", "n"),
    "cudnn": ("cuDNN, which only the convolution operator uses", "n"),
    "omp": ("OpenMP in the CPU operators", "y"),
}


def default_prefix() -> Path:
    """Return where InfiniCore goes unless --prefix says otherwise.

    ``~/.infini`` is the folder that InfiniCore's own tools take.
    """
    if os.environ.get("INFINI_ROOT"):
        return Path(os.environ["INFINI_ROOT"])
    try:
        return (CHECKOUT or Path.home()) / ".infini"
    except RuntimeError:  # nobody's home
        return Path(".infini")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="install_infinicore.py" if CHECKOUT else "qwen3-install-infinicore",
        description=f"Build InfiniCore {VERSION} and install it into a prefix.",
        epilog="Every switch takes an optional =y or =n, as InfiniCore's own do.",
    )
    parser.add_argument(
        "--prefix",
        type=Path,
        default=default_prefix(),
        metavar="DIR",
        help="folder that InfiniCore is installed into (default: $INFINI_ROOT, else "
        f"{'.infini in this repository' if CHECKOUT else '~/.infini'})",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of compilers that run at once (default: one for each CPU)",
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="checkout of a newer InfiniCore that is built instead (only the operators that are "
        "used; with graphs)",
    )
    parser.add_argument(
        "--operators",
        choices=("all", "used"),
        help="build all of InfiniCore's operators or those that this project uses (default: all; "
        "with --source: used)",
    )
    parser.add_argument(
        "--kernels",
        choices=("mended", "original"),
        default="mended",
        help="original: leave InfiniCore's own kernels for NVIDIA as they are, to compare",
    )
    parser.add_argument(
        "--sdist",
        type=Path,
        metavar="FILE",
        help="source archive that is used instead of one from the package index",
    )
    parser.add_argument(
        "--cuda",
        type=Path,
        metavar="DIR",
        help="folder of the CUDA toolkit that compiles (default: $CUDA_HOME, $CUDA_PATH, that of "
        "the nvcc on PATH, or /usr/local/cuda)",
    )
    parser.add_argument(
        "--toolkit",
        choices=("system", "pypi"),
        default="system",
        help="pypi: make the CUDA toolkit of packages from the package index (841 MB, no root, "
        "nothing from NVIDIA's site)",
    )
    parser.add_argument(
        "--toolkit-dir",
        type=Path,
        metavar="DIR",
        help="where --toolkit pypi puts it (default: build/cuda of this repository)",
    )
    parser.add_argument(
        "--cuda-arch",
        "--cuda_arch",
        type=cuda_architectures,
        metavar="sm_NN[,...]",
        help="GPUs that it is compiled for, such as sm_80,sm_90; compute_90 adds PTX for newer "
        "ones (default: this machine's)",
    )
    parser.add_argument(
        "--if-missing",
        action="store_true",
        help="keep an installation that this program made with other switches",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only say whether it is installed, with exit status 0 or 1",
    )
    parser.add_argument(
        "--requirements",
        action="store_true",
        help="only check that the compilers and toolkits that the build needs are there",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="build again what is there, and replace an InfiniCore of other origin",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show what compilers and other tools write"
    )
    switches = {name: f"build for {text}" for name, (text, _, _) in DEVICES.items()}
    switches |= {
        name: f"build with {text} (default: {value})" for name, (text, value) in OPTIONS.items()
    }
    for name, text in switches.items():
        names = [f"--{name}"] + (["--hygon-dcu"] if name == "sugon-dcu" else [])
        default = OPTIONS[name][1] if name in OPTIONS else "n"
        parser.add_argument(
            *names,
            dest=name,
            nargs="?",
            const="y",
            default=default,
            type=yes_or_no,
            metavar="y|n",
            help=text,
        )
    for name in NEWER_DEVICES:
        parser.add_argument(
            f"--{name}", dest=name, nargs="?", const="y", default="n", help=argparse.SUPPRESS
        )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}, must be at least 1")
    named = args.cuda or args.cuda_arch or args.toolkit == "pypi"
    if named and getattr(args, "nv-gpu") != "y":
        parser.error("--cuda, --cuda-arch and --toolkit are for --nv-gpu")
    if args.cuda and args.toolkit == "pypi":
        parser.error("--cuda names a toolkit, --toolkit pypi makes one: choose")
    if args.source and args.sdist:
        parser.error("--source and --sdist exclude each other")
    return args


def cuda_architectures(text: str) -> list[str]:
    """Splits the value of --cuda-arch."""
    names = text.split(",")
    if not all(re.fullmatch(r"(sm|compute)_\d{2,3}[a-z]?", name) for name in names):
        raise argparse.ArgumentTypeError(f"expected sm_80, or several as sm_80,sm_90: {text!r}")
    return sorted(set(names))


def yes_or_no(text: str) -> str:
    """Turns the value of a switch into "y" or "n"."""
    if text.lower() in ("y", "yes", "true", "on", "1"):
        return "y"
    if text.lower() in ("n", "no", "false", "off", "0"):
        return "n"
    raise argparse.ArgumentTypeError(f"expected y or n, not {text!r}")


def chosen_flags(args: argparse.Namespace) -> dict[str, str]:
    """The switches of InfiniCore's build in the order of the tables above."""
    return {name: getattr(args, name) for name in (*DEVICES, *OPTIONS)}
