"""Builds what ``install_infinicore`` has adapted, and puts it into the prefix."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infinicore_infer.paths import CHECKOUT
from infinicore_infer.tools.install_infinicore_run import InstallError, Runner
from infinicore_infer.tools.install_infinicore_source import TARGETS

STAMP = ".infinicore.json"


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


def check_compilers() -> None:
    """Raises InstallError when there is no C++ compiler."""
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        raise InstallError(
            f"no C++ compiler found (looked for {', '.join(names)}); "
            "on Debian and Ubuntu: apt-get install g++"
        )


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


def build(
    flags: Sequence[str],
    jobs: int,
    source: Path,
    stage: Path,
    environment: dict[str, str],
    runner: Runner,
) -> None:
    """Configures, compiles and installs into the staging folder."""
    xmake = find_xmake()
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
    env |= environment
    configure = [xmake, "f", "-c", "-y", "-m", "release", "--require=no", *flags]
    runner.run(configure, source, env, "configuring InfiniCore")
    runner.run(
        [xmake, "build", "-y", "-j", str(jobs), "infinicore_c_api"],
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


# ------------------------------------------------------------------ the prefix


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


def commit(stage: Path, prefix: Path, stamp: dict[str, object]) -> None:
    """Moves the staged files into the prefix, each by one rename, and writes the stamp last."""
    names = sorted(str(p.relative_to(stage)) for p in stage.rglob("*") if not p.is_dir())
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
    write_stamp(stage, prefix, {**stamp, "files": names})


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
