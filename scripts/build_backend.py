"""Builds wheels and source archives of this repository (PEP 517), the library included.

pip calls the hooks at the end. Metadata and Python files are the affair of setuptools. xmake
compiles the library and its InfiniCore module, outside of the checkout, and they come into the
wheel as ``infinicore_infer/lib``. The module needs InfiniCore's headers only: those in $INFINI_ROOT
or in the checkout's .infini, else those of the source archive, which pip fetches. An editable
installation compiles nothing: it uses what ``scripts/setup.sh`` or ``xmake build infinicore_infer``
leave in the checkout's build folder.

    pip wheel .                                           # compiles in a temporary folder
    pip wheel . --config-settings build-dir=build/wheel   # keeps objects there for the next time

Wheels are tagged linux_x86_64. The libraries that they need are those of manylinux, of the versions
that the compiling machine has: ``auditwheel show`` names the tag (Debian 12: manylinux_2_35), and
``auditwheel repair`` gives it to a wheel that is to be published.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parents[1]
NAME = "infinicore_infer_qwen3"
# What a source archive holds: all that the hooks read.
SOURCES = (
    *("pyproject.toml", "README.md", "LICENSE", "xmake.lua", "include", "src", "scripts"),
    "test/bench/machine.cpp",
)
Settings = Mapping[str, Any] | None

# The native files that the wheel being built will hold; empty in an editable installation.
_native: list[Path] = []


def _version() -> str:
    header = ROOT / "include" / "infinicore_infer" / "models" / "qwen3.h"
    found = re.search(r'#define QWEN3_VERSION_STRING "([^"]+)"', header.read_text("utf-8"))
    if not found:
        raise SystemExit(f"error: {header} states no version")
    return found[1]


# Read by pyproject.toml.
VERSION = _version()


class BuildPy(build_py):  # type: ignore[misc]
    """Copies the Python files and the native ones beside them."""

    def run(self) -> None:
        """Do what setuptools does, then add the native files."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "infinicore_infer" / "lib"
        folder.mkdir(parents=True, exist_ok=True)
        for path in _native:
            shutil.copy2(path, folder)


class BdistWheel(bdist_wheel):  # type: ignore[misc]
    """Makes a wheel for one platform and every Python 3: the library knows nothing of Python."""

    def finalize_options(self) -> None:
        """Say that the files belong to a platform."""
        self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the file's name."""
        return ("py3", "none", super().get_tag()[2])


def _find_xmake() -> str:
    beside = Path(sys.executable).parent / "xmake"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("xmake")
    if not found:
        raise SystemExit("error: xmake is missing: pip install -r scripts/requirements/build.txt")
    return found


def _local_infinicore() -> Path | None:
    for root in (os.environ.get("INFINI_ROOT"), ROOT / ".infini"):
        if root and (Path(root) / "include" / "infiniop.h").is_file():
            return Path(root)
    return None


def _infinicore(folder: Path) -> Path | None:
    """Return a folder whose ``include`` has InfiniCore's headers, or None without a network."""
    if local := _local_infinicore():
        return local
    # The scripts' folder is on the path: the hooks come from there.
    from infinicore_infer.tools import install_infinicore as installer

    fetched = folder / f"infinicore-{installer.VERSION}"
    if not (fetched / "include" / "infiniop.h").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            installer.unpack(installer.download(folder, installer.Runner(False)), folder)
        except (installer.InstallError, OSError) as error:
            print(f"warning: the wheel is for the CPU only, without InfiniCore's headers: {error}")
            return None
    return fetched


def _compile(folder: Path) -> list[Path]:
    """Compile what a wheel holds in a folder; return the files."""
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise SystemExit("error: no C++ compiler (g++ 9 or newer, or clang++ 10 or newer)")
    xmake = _find_xmake()
    folder.mkdir(parents=True, exist_ok=True)
    # Neither the checkout's configuration nor anybody's global one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XMAKE_")}
    infinicore = _infinicore(folder / "infinicore")
    if infinicore:
        environment["INFINI_ROOT"] = str(infinicore)
    environment |= {
        "XMAKE_CONFIGDIR": str(folder / "config"),
        "XMAKE_GLOBALDIR": str(folder / "global"),
        "XMAKE_TMPDIR": str(folder / "tmp"),
        "XMAKE_ROOT": "y",
        "XMAKE_COLORTERM": "nocolor",
        "XMAKE_STATS": "n",
        "HOME": os.environ.get("HOME") or str(folder),
    }

    def run(*arguments: str) -> None:
        done = subprocess.run([xmake, *arguments], cwd=ROOT, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"error: xmake {arguments[0]} ended with status {done.returncode}")

    headers = "headers" if infinicore else "n"
    configure = ("f", "-y", "-m", "release", "--require=no", f"--infinicore={headers}")
    run(*configure, "-o", str(folder / "build"))
    run("build", "-y", "infinicore_infer")
    names = ["libinfinicore_infer.so"]
    if infinicore:
        run("build", "-y", "infinicore_infer_infini")
        names.append("libinfinicore_infer_infini.so")
    if os.uname().machine == "x86_64":  # it measures with x86-64's instructions
        run("build", "-y", "bench_machine")
        names.append("bench_machine")
    return [path for name in names for path in (folder / "build").glob(f"*/*/release/{name}")]


@contextmanager
def _outside() -> Iterator[Path]:
    """Give setuptools a temporary folder for all that it would leave in the checkout."""
    before = os.environ.get("DIST_EXTRA_CONFIG")
    with tempfile.TemporaryDirectory(prefix="infinicore-infer-") as name:
        scratch = Path(name)
        (scratch / "setup.cfg").write_text(
            f"[egg_info]\negg_base = {scratch}\n[build]\nbuild_base = {scratch / 'python'}\n"
            f"[bdist_wheel]\nbdist_dir = {scratch / 'wheel'}\n",
            "utf-8",
        )
        os.environ["DIST_EXTRA_CONFIG"] = str(scratch / "setup.cfg")
        try:
            yield scratch
        finally:
            if before is None:
                del os.environ["DIST_EXTRA_CONFIG"]
            else:
                os.environ["DIST_EXTRA_CONFIG"] = before


# ------------------------------------------------------------------ hooks


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return the pinned xmake, as one package, and pip if headers have to be fetched."""
    lines = (ROOT / "scripts" / "requirements" / "build.txt").read_text("utf-8").splitlines()
    fetching = [] if _local_infinicore() else ["pip"]
    return [line for line in lines if line.startswith("xmake-wheel")] + fetching


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """Return nothing: an editable installation compiles nothing."""
    return []


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """Return nothing: a source archive is a copy."""
    return []


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    """Write the metadata into a folder; return its name."""
    with _outside():
        return str(build_meta.prepare_metadata_for_build_wheel(metadata_directory))


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def build_wheel(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel with the library inside; return its name.

    Args:
        wheel_directory: Where it goes.
        config_settings: ``build-dir`` names a folder, relative to the repository, that keeps
            configuration and objects of the library. The rest is for setuptools.
        metadata_directory: What ``prepare_metadata_for_build_wheel`` wrote.
    """
    settings = dict(config_settings or {})
    kept = settings.pop("build-dir", None)
    with _outside() as scratch:
        _native[:] = _compile(ROOT / kept if kept else scratch / "native")
        return str(build_meta.build_wheel(wheel_directory, settings, metadata_directory))


def build_editable(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel that points to this checkout; return its name."""
    with _outside():
        name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
        return str(name)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Write a source archive of what a wheel is built from; return its name."""
    base = f"{NAME}-{VERSION}"
    with tempfile.TemporaryDirectory(prefix="infinicore-infer-") as folder:
        info = Path(folder) / prepare_metadata_for_build_wheel(folder) / "METADATA"
        metadata = info.read_bytes()

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = Path(entry.name).name
        if name == "__pycache__" or name.endswith((".pyc", ".egg-info")) or name.startswith("."):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(Path(sdist_directory) / f"{base}.tar.gz", "w:gz") as archive:
        for name in SOURCES:
            archive.add(ROOT / name, f"{base}/{name}", filter=kept)
        entry = tarfile.TarInfo(f"{base}/PKG-INFO")
        entry.size = len(metadata)
        archive.addfile(entry, io.BytesIO(metadata))
    return f"{base}.tar.gz"
