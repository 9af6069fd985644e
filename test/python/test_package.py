"""The package: what is in wheel and source archive, and whether it runs where no checkout is.

The wheel is built as pip builds it, by xmake. build/wheel keeps the objects for the next time; the
first time xmake's cache of the checkout's build has what it compiled from the same sources.
"""

from __future__ import annotations

import configparser
import email
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from building import exclusive
from python.helpers import DEMO, ROOT, SCRIPTS

HEADER = ROOT / "include" / "infinicore_infer" / "models" / "qwen3.h"
(VERSION,) = re.findall(r'QWEN3_VERSION_STRING "(\d+\.\d+\.\d+)"', HEADER.read_text("utf-8"))
INFO = f"infinicore_infer_qwen3-{VERSION}.dist-info"
PROGRAMS = {
    *("qwen3", "qwen3-server", "qwen3-bench", "qwen3-doctor", "qwen3-quality"),
    "qwen3-quantize",
    "qwen3-install-infinicore",
}
# What every system with glibc has.
SYSTEM_LIBRARIES = {
    *("libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6"),
    *("libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
}
PROMPT = ("--prompt", "Hello", "--max-tokens", "12", "--temperature", "0", "--json")
# Environment of programs that must find their files by themselves.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "INFINICORE_INFER_LIB", "INFINI_ROOT")
}


def run(*command: object, cwd: Path, status: int = 0, **environment: str) -> tuple[str, str]:
    """Run a program away from the checkout; return what it wrote to stdout and stderr."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**CLEAN, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of a checkout's files; of the build folder those that are used."""
    found = {}
    for parent, folders, names in os.walk(folder):
        hidden = {"__pycache__", ".git", ".venv", ".infini", ".hypothesis"}
        folders[:] = [n for n in folders if n not in hidden and not n.endswith("_cache")]
        if parent == str(ROOT / "build"):  # other tests write beside them
            folders[:], names = ["linux"], []
        for name in names:
            path = Path(parent, name)
            state = path.lstat()
            found[str(path.relative_to(folder))] = (state.st_size, state.st_mtime_ns)
    return found


def pip(*arguments: object, cwd: Path) -> None:
    # No network, and nothing but this environment's setuptools and xmake.
    options = ("--disable-pip-version-check", "--no-index", "--no-deps", "--no-input")
    run(sys.executable, "-m", "pip", *arguments, *options, cwd=cwd)


def build_wheel(folder: Path) -> Path:
    cache = ROOT / "build" / "wheel" / "build" / ".build_cache"
    if not cache.exists() and (ROOT / "build" / ".build_cache").exists():
        shutil.copytree(ROOT / "build" / ".build_cache", cache)
    kept = ("--config-settings", "build-dir=build/wheel")
    pip("wheel", "--no-build-isolation", "-w", folder, *kept, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def make_venv(folder: Path) -> Path:
    """Make an environment with third parties' packages and none of ours; return its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    needed = ("numpy", "tokenizers", "jinja2", "uvicorn")
    places = {str(Path(metadata.distribution(name).locate_file(""))) for name in needed}
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "third_parties.pth").write_text("\n".join(sorted(places)) + "\n", "utf-8")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of an environment that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    python = make_venv(folder / "venv")
    pip("--python", python, "install", wheel, cwd=folder)
    return python.parent


# ------------------------------------------------------------------ what is in it


def test_wheel(wheel: Path) -> None:
    machine = platform.machine()
    assert wheel.name == f"infinicore_infer_qwen3-{VERSION}-py3-none-linux_{machine}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(INFO)}
        tags = email.message_from_bytes(archive.read(f"{INFO}/WHEEL"))
        facts = email.message_from_bytes(archive.read(f"{INFO}/METADATA"))
        programs = configparser.ConfigParser()
        programs.read_string(archive.read(f"{INFO}/entry_points.txt").decode())
        assert archive.read(f"{INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    package = SCRIPTS / "infinicore_infer"
    files = [*package.rglob("*.py"), *package.rglob("*.h")]
    expected = {str(path.relative_to(SCRIPTS)) for path in files}
    expected |= {"qwen3.py", "libinfinicore_infer.py", "infinicore_infer/py.typed"}
    static = [path for path in (package / "server" / "static").rglob("*") if path.is_file()]
    assert len(static) > 30
    expected |= {str(path.relative_to(SCRIPTS)) for path in static}
    expected |= {"infinicore_infer/lib/libinfinicore_infer.so"}
    expected |= {"infinicore_infer/lib/libinfinicore_infer_infini.so"}
    if machine == "x86_64":
        expected |= {"infinicore_infer/lib/bench_machine"}
    assert names == expected
    assert tags.get_all("Tag") == [f"py3-none-linux_{machine}"]
    assert tags["Root-Is-Purelib"] == "false"
    assert facts["Version"] == VERSION and facts["License-Expression"] == "MIT"
    assert set(programs["console_scripts"]) == PROGRAMS
    required = [line for line in facts.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(re.split(r"[<>=]", line)[0] for line in required) == [
        *("jinja2", "numpy", "tokenizers")
    ]
    assert facts.get_all("Provides-Extra") == ["server", "chat", "ray", "bench"]


def test_library_needs_the_system_only(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if "/lib/" not in name:
                continue
            file = archive.extract(name, tmp_path)
            dynamic, _ = run("readelf", "-d", file, cwd=tmp_path, LC_ALL="C")
            needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
            assert needed <= SYSTEM_LIBRARIES, name
            assert "RPATH" not in dynamic and "RUNPATH" not in dynamic, name


def test_building_again_leaves_the_checkout_alone(wheel: Path, tmp_path: Path) -> None:
    with exclusive():
        before = files_of(ROOT)
        again = build_wheel(tmp_path)
        assert files_of(ROOT) == before
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert first.namelist() == second.namelist()
        assert all(first.read(name) == second.read(name) for name in first.namelist())


def hook(call: str, cwd: Path) -> str:
    """Call a hook of the build backend as pip does; return what the hook returns."""
    code = f"import build_backend; print(); print(build_backend.{call})"
    path = str(cwd / "scripts")
    return run(sys.executable, "-c", code, cwd=cwd, PYTHONPATH=path)[0].splitlines()[-1]


def test_source_archive(tmp_path: Path) -> None:
    """It holds what a wheel is built from, and says the same of itself as the checkout does."""
    with exclusive():
        before = files_of(ROOT)
        name = hook(f"build_sdist({str(tmp_path)!r})", ROOT)
        assert files_of(ROOT) == before
    base = f"infinicore_infer_qwen3-{VERSION}"
    assert name == f"{base}.tar.gz"
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / base
    for folder in ("include", "src", "scripts"):
        there, here = files_of(unpacked / folder), files_of(ROOT / folder)
        assert {n: size for n, (size, _) in there.items()} == {
            n: size for n, (size, _) in here.items()
        }
    assert not (unpacked / "test" / "data").exists()
    (tmp_path / "info").mkdir()
    assert hook(f"prepare_metadata_for_build_wheel({str(tmp_path / 'info')!r})", unpacked) == INFO
    text = (tmp_path / "info" / INFO / "METADATA").read_bytes()
    assert (unpacked / "PKG-INFO").read_bytes() == text
    # pip fetches InfiniCore's headers, which only a checkout has.
    required = hook("get_requires_for_build_wheel()", unpacked)
    assert re.fullmatch(r"\['xmake-wheel==[\d.]+', 'pip'\]", required)


def test_editable_installation_points_to_the_checkout(tmp_path: Path) -> None:
    with exclusive():
        before = files_of(ROOT)
        name = hook(f"build_editable({str(tmp_path)!r})", ROOT)
        assert files_of(ROOT) == before
    with zipfile.ZipFile(tmp_path / name) as archive:
        (path_file,) = (n for n in archive.namelist() if not n.startswith(INFO))
        assert path_file.endswith(".pth")
        assert archive.read(path_file).decode().split() == [str(SCRIPTS)]


def test_the_version_is_written_in_one_place() -> None:
    """Names of InfiniCore's versions are others' and stay what they are."""
    found = {
        str(path.relative_to(ROOT))
        for top in ("pyproject.toml", "xmake.lua", "README.md", "include", "src", "scripts", "test")
        for path in [ROOT / top, *(ROOT / top).rglob("*")]
        if path.is_file() and path.suffix in (".toml", ".lua", ".md", ".h", ".cpp", ".py", ".sh")
        if VERSION in path.read_text("utf-8")
    }
    assert found == {str(HEADER.relative_to(ROOT))}


# ------------------------------------------------------------------ installed


def test_installed_command_line(installed: Path, bare: Path, tmp_path: Path) -> None:
    """It answers as the checkout's does."""
    ours, errors = run(installed / "qwen3", "--model-path", DEMO, *PROMPT, cwd=tmp_path)
    assert errors == ""
    theirs, _ = run(bare, SCRIPTS / "qwen3.py", "--model-path", DEMO, *PROMPT, cwd=tmp_path)
    assert json.loads(ours)["tokens"] == json.loads(theirs)["tokens"]
    _, errors = run(installed / "qwen3", *PROMPT, cwd=tmp_path, status=2)
    assert errors.splitlines()[-1] == (
        "error: --model-path is required: only a checkout of the repository has the demo model"
    )


def test_installed_package(installed: Path, tmp_path: Path) -> None:
    code = (
        "import infinicore_infer, libinfinicore_infer, qwen3\n"
        "print(infinicore_infer.__version__, infinicore_infer.__file__)\n"
        "print(libinfinicore_infer.load_library()._name)\n"
        "from infinicore_infer.tools import machine_limits\n"
        "print(machine_limits._program())"
    )
    lines = run(installed / "python", "-c", code, cwd=tmp_path)[0].splitlines()
    version, path = lines[0].split(maxsplit=1)
    site = Path(path).parents[1]
    assert version == VERSION and site.is_relative_to(installed.parent)
    assert lines[1] == str(site / "infinicore_infer" / "lib" / "libinfinicore_infer.so")
    if platform.machine() == "x86_64":
        program = site / "infinicore_infer" / "lib" / "bench_machine"
        assert lines[2] == str(program) and os.access(program, os.X_OK)


def test_installed_on_the_oldest_cpu(installed: Path, tmp_path: Path) -> None:
    """The table of kernels without any instructions beyond the architecture's first."""
    answer, _ = run(
        installed / "qwen3", "--model-path", DEMO, *PROMPT, cwd=tmp_path, QWEN3_CPU_ISA="scalar"
    )
    assert len(json.loads(answer)["tokens"]) == 12


def test_installed_doctor(installed: Path, tmp_path: Path) -> None:
    findings = json.loads(run(installed / "qwen3-doctor", "--json", cwd=tmp_path)[0])
    states = {finding["topic"]: finding for finding in findings}
    assert str(installed.parent) in states["library"]["text"]
    assert "--model-path" in states["self-test"]["advice"]
    advice = " ".join(finding["advice"] for finding in findings)
    assert "scripts/" not in advice and "xmake" not in advice
    command = (installed / "qwen3-doctor", "--json", "--model-path", DEMO)
    findings = json.loads(run(*command, cwd=tmp_path)[0])
    assert {f["state"] for f in findings if f["topic"].startswith("self-test")} == {"ok"}


INFINICORE = Path(os.environ.get("INFINI_ROOT") or ROOT / ".infini")


@pytest.mark.skipif(
    not (INFINICORE / "lib" / "libinfiniop.so").is_file(), reason="InfiniCore is not installed"
)
def test_infinicore_can_be_added_later(installed: Path, tmp_path: Path) -> None:
    """The wheel's module finds an InfiniCore that the wheel was not built with."""
    command = (installed / "qwen3-doctor", "--json", "--model-path", DEMO)
    findings = json.loads(run(*command, cwd=tmp_path, INFINI_ROOT=str(INFINICORE))[0])
    states = {finding["topic"]: finding["state"] for finding in findings}
    assert (states["infinicore"], states["self-test cpu:0"]) == ("ok", "ok")
    arguments = ("--model-path", DEMO, "--backend", "infinicore", *PROMPT)
    answer, _ = run(installed / "qwen3", *arguments, cwd=tmp_path, INFINI_ROOT=str(INFINICORE))
    assert len(json.loads(answer)["tokens"]) == 12


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_installed_programs_explain_themselves(name: str, installed: Path, tmp_path: Path) -> None:
    text, _ = run(installed / name, "--help", cwd=tmp_path)
    assert f"usage: {name} " in text and str(ROOT) not in text


def test_installed_server(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "qwen3-server"), "--model-path", str(DEMO), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=CLEAN, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if "is ready" in line:
                break
        assert "is ready" in log[-1], log
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_server_without_its_packages(installed: Path, bare: Path, tmp_path: Path) -> None:
    """It says what to install, there and in a checkout."""
    code = "import sys; sys.modules['uvicorn'] = None; sys.argv[1:] = []; "
    there = code + "from infinicore_infer.server.__main__ import main; sys.exit(main())"
    _, errors = run(installed / "python", "-c", there, cwd=tmp_path, status=1)
    assert errors == (
        "error: the server needs the package uvicorn: "
        "pip install 'infinicore-infer-qwen3[server]'\n"
    )
    here = code + f"sys.path.insert(0, {str(SCRIPTS)!r}); import launch_server as l; "
    _, errors = run(bare, "-c", here + "sys.exit(l.main())", cwd=tmp_path, status=1)
    assert errors.endswith("uvicorn: bash scripts/setup.sh --with-server\n")


# ------------------------------------------------------------------ the doors of a checkout


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def test_door_of_the_command_line(bare: Path, elsewhere: Path) -> None:
    answer, errors = run(bare, SCRIPTS / "qwen3.py", *PROMPT, cwd=elsewhere)
    assert len(json.loads(answer)["tokens"]) == 12 and str(DEMO) in errors


def test_door_of_the_server(bare: Path, elsewhere: Path) -> None:
    text, _ = run(bare, SCRIPTS / "launch_server.py", "--help", cwd=elsewhere)
    assert "--max-batch" in text
    code = "from launch_server import build_parser, main; print(build_parser().parse_args([]).port)"
    assert run(bare, "-c", code, cwd=elsewhere, PYTHONPATH=str(SCRIPTS))[0] == "8000\n"


def test_door_of_the_installer(elsewhere: Path) -> None:
    """It runs before there is an environment, with nothing but Python."""
    command = (sys.executable, "-E", "-S", SCRIPTS / "install_infinicore.py")
    text, _ = run(*command, "--help", cwd=elsewhere)
    assert "--nv-gpu" in text


def test_door_of_programs(bare: Path, elsewhere: Path) -> None:
    """What programs import with scripts/ on the path."""
    code = (
        "from qwen3 import Qwen3ForCausalLM, Qwen3MetaFromConfig, Qwen3WeightsImpl\n"
        "from qwen3 import Qwen3WeightsNaming, SamplingParams\n"
        "import qwen3, libinfinicore_infer\n"
        "assert all(hasattr(qwen3, name) for name in qwen3.__all__)\n"
        f"with Qwen3ForCausalLM({str(DEMO)!r}) as model:\n"
        "    print(len(model.generate('Hello', 5, ignore_eos=True).tokens))\n"
    )
    assert run(bare, "-c", code, cwd=elsewhere, PYTHONPATH=str(SCRIPTS))[0] == "5\n"
