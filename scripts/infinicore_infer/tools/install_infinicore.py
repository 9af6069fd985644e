#!/usr/bin/env python3
"""Builds InfiniCore 0.1.0 from its source archive and installs it into a prefix.

The archive comes from pip's configured package index (or from ``--sdist FILE``) and must have the
pinned SHA-256. Only what the engine links is built: infinirt, infiniop, infiniccl and the headers.
The build happens in a temporary folder; files reach the prefix one atomic rename at a time and a
stamp is written last, so an interrupted run is repaired by the next one and a finished
installation is recognised at once. Nothing outside the prefix and the temporary folder is written.

Examples::

    python scripts/install_infinicore.py                       # CPU only
    python scripts/install_infinicore.py --nv-gpu --ccl        # NVIDIA GPUs, NCCL
    python scripts/install_infinicore.py --nv-gpu --cuda-arch sm_80,sm_90   # for other machines
    python scripts/install_infinicore.py --prefix ~/.infini --ascend-npu
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infinicore_infer.paths import CHECKOUT

NAME = "infinicore"
VERSION = "0.1.0"
SHA256 = "f11f9ab33ad3a2dd943daf4c1d987162e86e1239abb1a178791bf8a9a2ece560"
RECIPE = 1  # raise when the way of building changes, so that old installations are rebuilt
STAMP = ".infinicore.json"
TARGETS = ("infinirt", "infiniop", "infiniccl")

#: Device switches: name -> (help, environment variables of which one must be set, default folder).
DEVICES: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "nv-gpu": ("NVIDIA GPUs (CUDA 11 or 12)", (), None),
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


class InstallError(Exception):
    """Something the user has to know about; the text says what to do."""


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
        "--cuda-arch",
        "--cuda_arch",
        type=cuda_architectures,
        metavar="sm_NN[,...]",
        help="GPUs that it is compiled for, such as sm_80,sm_90 (default: the GPU of this machine)",
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
    if (args.cuda or args.cuda_arch) and getattr(args, "nv-gpu") != "y":
        parser.error("--cuda and --cuda-arch are for --nv-gpu")
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


def wanted(args: argparse.Namespace) -> dict[str, str]:
    """What an installation must have been made with to be the one that is asked for."""
    architectures = {"cuda-arch": ",".join(args.cuda_arch)} if args.cuda_arch else {}
    return {**chosen_flags(args), **architectures}


def find_xmake() -> str:
    """The xmake next to this Python, else the one on PATH."""
    beside = Path(sys.executable).parent / "xmake"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("xmake")
    if not found:
        advice = "pip install xmake-wheel"
        if CHECKOUT:
            advice = "run scripts/setup.sh, or pip install -r scripts/requirements/build.txt"
        raise InstallError(f"xmake is missing: {advice}")
    return found


def find_nvcc(cuda: Path | None) -> Path | None:
    """The CUDA compiler that a build would use."""
    folders = [cuda] if cuda else []
    if not cuda:
        folders += [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
        on_path = shutil.which("nvcc")
        folders += [Path(on_path).resolve().parent.parent] if on_path else []
        folders.append(Path("/usr/local/cuda"))
    for folder in folders:
        nvcc = folder / "bin" / "nvcc"
        if os.access(nvcc, os.X_OK):
            return nvcc
    return None


def check_compilers() -> None:
    """Raises InstallError when there is no C++ compiler."""
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        raise InstallError(
            f"no C++ compiler found (looked for {', '.join(names)}); "
            "on Debian and Ubuntu: apt-get install g++"
        )


def check_nvidia(args: argparse.Namespace) -> Path:
    """Checks the CUDA toolkit and the GPU; returns the toolkit's folder."""
    nvcc = find_nvcc(args.cuda)
    if nvcc is None and args.cuda:
        raise InstallError(f"--cuda {args.cuda} is no CUDA toolkit: it has no bin/nvcc")
    if nvcc is None:
        raise InstallError(
            "--nv-gpu needs the CUDA toolkit (nvcc), version 11 or 12: "
            "install it, or name it with --cuda DIR or CUDA_HOME"
        )
    done = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if match and int(match[1]) >= 13:
        raise InstallError(
            f"{nvcc} is CUDA {match[1]}.{match[2]}, and InfiniCore {VERSION} does not compile with "
            "CUDA 13 (it uses cub::Max and cub::Min, which are gone there). Name a CUDA 12 "
            "toolkit with --cuda DIR, or build a newer InfiniCore yourself and set INFINI_ROOT"
        )
    if not args.cuda_arch and not gpu_is_visible():
        raise InstallError(
            f"no NVIDIA GPU is visible: InfiniCore {VERSION} compiles for the GPU it sees while "
            "building. Build on the machine that has it, or name what it has: --cuda-arch sm_80"
        )
    if args.ccl == "y" and not os.environ.get("NCCL_ROOT") and not has_library("libnccl.so"):
        raise InstallError(
            "--ccl needs NCCL with its headers: on Debian and Ubuntu install libnccl-dev, "
            "or set NCCL_ROOT to a folder with include/ and lib/libnccl.so"
        )
    return nvcc.parent.parent


def gpu_is_visible() -> bool:
    """Whether the driver offers an NVIDIA GPU (on Windows' Linux: any GPU)."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def has_library(name: str) -> bool:
    """Whether the dynamic linker's cache, or a usual folder, has a library of this name."""
    ldconfig = shutil.which("ldconfig", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    if ldconfig:
        done = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False)
        if name in done.stdout:
            return True
    folders = [Path("/usr/lib"), Path("/usr/local/lib"), *Path("/usr/lib").glob("*-linux-gnu")]
    folders += [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p]
    return any((folder / name).is_file() for folder in folders)


def check_requirements(args: argparse.Namespace) -> list[str]:
    """Checks what the chosen devices need; returns further arguments for ``xmake f``."""
    for name in NEWER_DEVICES:
        if getattr(args, name) != "n":
            raise InstallError(
                f"InfiniCore {VERSION} has no --{name}: build a newer InfiniCore with it "
                "(python scripts/install.py in its checkout) and set INFINI_ROOT"
            )
    check_compilers()
    extra: list[str] = []
    for name, (_, variables, default) in DEVICES.items():
        if getattr(args, name) != "y":
            continue
        if name == "nv-gpu":
            extra.append(f"--cuda={check_nvidia(args)}")
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
    return extra


class Runner:
    """Runs commands, quietly unless asked; a failure carries the end of their output."""

    def __init__(self, verbose: bool) -> None:
        """Store whether the output is let through."""
        self.verbose = verbose

    def step(self, text: str) -> None:
        """Says what happens next."""
        print(f"infinicore: {text}", flush=True)

    def run(self, command: Sequence[str], cwd: Path, env: dict[str, str], what: str) -> None:
        """Runs one command in ``cwd`` and raises InstallError when it fails."""
        out = None if self.verbose else subprocess.PIPE
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=None if self.verbose else subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise InstallError(f"{what} failed: {error}") from error
        if done.returncode == 0:
            return
        tail = "\n".join((done.stdout or "").splitlines()[-40:])
        raise InstallError(f"{what} failed with status {done.returncode}\n{tail}".rstrip())


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


def replace_once(path: Path, old: str, new: str) -> None:
    """Replaces the one occurrence of ``old`` in a file."""
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise InstallError(f"{path.name} of {NAME} {VERSION} is not as expected ({old!r})")
    path.write_text(text.replace(old, new), encoding="utf-8")


def patch(source: Path, architectures: Sequence[str] | None = None) -> None:
    """Adapts the build files.

    - The Python binding, the test programs and the ``pybind11``/``openmp`` packages go, since xmake
      would fetch package repositories for them.
    - libinfiniop.so uses OpenMP's run time without naming it: it now does.
    - The libraries find each other (RUNPATH ``$ORIGIN``), so that no LD_LIBRARY_PATH is needed.
    - Other GPUs than this machine's are compiled for, if wanted.
    """
    if architectures:
        names = ", ".join(f'"{name}"' for name in architectures)
        cuda_file = source / "xmake" / "nvidia.lua"
        replace_once(cuda_file, 'add_cugencodes("native")', f"add_cugencodes({names})")
    main_file = source / "xmake.lua"
    replace_once(main_file, 'add_requires("pybind11")\n', "")
    text = main_file.read_text(encoding="utf-8")
    start = text.index('target("infinicore")\n')
    main_file.write_text(text[:start], encoding="utf-8")
    cpu_file = source / "xmake" / "cpu.lua"
    replace_once(cpu_file, '    add_requires("openmp")\n    add_packages("openmp")\n', "")
    omp = (
        '    if has_config("omp") then\n        add_shflags("-fopenmp", {force = true})\n    end\n'
    )
    rpath = '    add_shflags("-Wl,-rpath,$ORIGIN", {force = true})\n'
    for target, lines in (("infinirt", rpath), ("infiniop", rpath + omp), ("infiniccl", rpath)):
        head = f'target("{target}")\n    set_kind("shared")\n'
        replace_once(main_file, head, head + lines)


def build(args: argparse.Namespace, source: Path, stage: Path, runner: Runner) -> None:
    """Configures, compiles and installs into the staging folder."""
    xmake = find_xmake()
    extra = check_requirements(args)
    env = {k: v for k, v in os.environ.items() if not k.startswith("XMAKE_")}
    env |= {
        "INFINI_ROOT": str(stage),
        "XMAKE_GLOBALDIR": str(source.parent / "xmake"),
        "XMAKE_TMPDIR": str(source.parent / "tmp"),
        "TMPDIR": str(source.parent),
        "XMAKE_COLORTERM": "nocolor",
        "XMAKE_STATS": "n",
        "HOME": os.environ.get("HOME") or str(source.parent),
    }
    if os.geteuid() == 0:
        env["XMAKE_ROOT"] = "y"
    flags = [f"--{name}={value}" for name, value in chosen_flags(args).items()]
    configure = [xmake, "f", "-c", "-y", "-m", "release", "--require=no", *flags, *extra]
    runner.run(configure, source, env, "configuring InfiniCore")
    runner.run(
        [xmake, "build", "-y", "-j", str(args.jobs), "infinicore_c_api"],
        source,
        env,
        "compiling InfiniCore",
    )
    for target in TARGETS:
        runner.run([xmake, "install", "-y", target], source, env, f"installing {target}")
    missing = [
        name
        for name in (*(f"lib/lib{t}.so" for t in TARGETS), *(f"include/{t}.h" for t in TARGETS))
        if not (stage / name).is_file()
    ]
    if missing:
        raise InstallError(f"the build finished, but did not make {', '.join(missing)}")


def read_stamp(prefix: Path) -> dict[str, object] | None:
    """The stamp of a finished installation whose files are all there, else None."""
    try:
        stamp = json.loads((prefix / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stamp, dict) or not isinstance(stamp.get("files"), list):
        return None
    return stamp if all((prefix / str(name)).is_file() for name in stamp["files"]) else None


def old_files(prefix: Path) -> list[str]:
    """The files that an earlier run installed, also when some are gone by now."""
    try:
        names = json.loads((prefix / STAMP).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names if ".." not in Path(str(name)).parts]


def commit(stage: Path, prefix: Path, flags: dict[str, str]) -> None:
    """Moves the staged files into the prefix, each by one rename, and writes the stamp last."""
    names = sorted(str(p.relative_to(stage)) for p in stage.rglob("*") if not p.is_dir())
    stamp = {"name": NAME, "version": VERSION, "sha256": SHA256, "recipe": RECIPE}
    known = sorted({*names, *old_files(prefix)})
    # First a stamp that names no version: should this run be cut short, the next one starts over
    # and still knows which files are its own.
    write_stamp(stage, prefix, {"files": known})
    for name in known:
        target = prefix / name
        if name in names:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / name, target)
        else:
            target.unlink(missing_ok=True)
    write_stamp(stage, prefix, {**stamp, "flags": flags, "files": names})


def write_stamp(stage: Path, prefix: Path, content: dict[str, object]) -> None:
    """Writes the stamp atomically."""
    fresh = stage / STAMP
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, prefix / STAMP)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder, so that two runs for one prefix follow each other."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_current(prefix: Path, flags: dict[str, str], any_flags: bool) -> bool:
    """Whether the prefix already holds what would be installed."""
    stamp = read_stamp(prefix)
    if stamp is None or (stamp.get("version"), stamp.get("sha256")) != (VERSION, SHA256):
        return False
    return stamp.get("recipe") == RECIPE and (any_flags or stamp.get("flags") == flags)


def install(args: argparse.Namespace) -> bool:
    """Installs into ``args.prefix``; returns whether there was anything to do."""
    flags = chosen_flags(args)
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
            work, stage = Path(scratch), Path(staging)
            if args.sdist is None:
                runner.step(f"downloading {NAME} {VERSION}")
            archive = args.sdist or download(work, runner)
            source = unpack(archive, work)
            patch(source, args.cuda_arch)
            devices = ", ".join(name for name in DEVICES if flags[name] == "y") or "CPU"
            runner.step(f"compiling ({devices})")
            build(args, source, stage, runner)
            commit(stage, prefix, wanted(args))
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    args = parse_args(argv)
    start = time.monotonic()
    if args.check:
        prefix = args.prefix.expanduser()
        current = is_current(prefix, wanted(args), args.if_missing)
        print(f"infinicore: {VERSION} is {'' if current else 'not '}installed in {prefix}")
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
        print(f"infinicore: {VERSION} installed into {args.prefix} ({spent:.0f} s)")
    else:
        print(f"infinicore: {VERSION} is installed in {args.prefix}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
