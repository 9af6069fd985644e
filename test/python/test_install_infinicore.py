"""install_infinicore.py up to the build: refusals say what to do, and nothing is written.

The build itself is ``scripts/test.sh --with-cuda``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from infinicore_infer.tools import install_infinicore
from infinicore_infer.tools import install_infinicore_cuda as cuda
from infinicore_infer.tools.install_infinicore_args import DEVICES
from infinicore_infer.tools.install_infinicore_run import KNOWN_FAILURES, advice_for
from python.helpers import ROOT

PARTS = ("include/cuda_runtime.h", "include/cublas_v2.h", "lib64/libcublas.so")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a C++ compiler and one H200, no toolkit's variables, no prefix."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program(bin_folder / "g++", "")
    gpu(tmp_path, "9.0", "580.65.06")
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setenv("INFINI_ROOT", str(tmp_path / "prefix"))
    monkeypatch.setattr(install_infinicore, "find_xmake", lambda: "xmake")
    monkeypatch.setattr(install_infinicore, "has_library", lambda name: False)
    monkeypatch.setattr(cuda, "USUAL", tmp_path / "local")
    variables = [v for _, names, _ in DEVICES.values() for v in names]
    for name in (*variables, "CXX", "CUDA_HOME", "CUDA_PATH", "NCCL_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def program(path: Path, output: str) -> None:
    script(path, f"echo '{output}'")


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def gpu(machine: Path, capability: str, driver: str) -> None:
    answers = f"case $1 in *compute_cap*) echo {capability};; *) echo {driver};; esac"
    script(machine / "bin" / "nvidia-smi", answers)


def toolkit(machine: Path, release: str, without: str = "") -> Path:
    """A CUDA toolkit that says it is of that release, without one of its parts."""
    folder = machine / f"cuda-{release}"
    known = "compute_75" if release.startswith("13") else "compute_70 compute_75"
    known += " compute_80 compute_90"
    answer = (
        f"case $1 in --version) echo 'Cuda tools, release {release}, V1';; *) echo {known};; esac"
    )
    script(folder / "bin" / "nvcc", answer)
    for part in PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).touch()
    if without:
        (folder / without).unlink()
    return folder


def error_of(capsys: pytest.CaptureFixture[str], machine: Path, *arguments: str) -> str:
    assert install_infinicore.main(arguments) == 1
    assert not (machine / "prefix").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ascend-npu"], "set ASCEND_HOME or ASCEND_TOOLKIT_HOME"),
        (["--metax-gpu=y"], "--metax-gpu needs the vendor's toolkit"),
        (["--sugon-dcu"], "cannot be built for DCUs"),
        (["--hygon-dcu"], "cannot be built for DCUs"),
        (["--qy-gpu"], "has no --qy-gpu: build a newer InfiniCore"),
        (["--ali-ppu"], "has no --ali-ppu: build a newer InfiniCore"),
        (["--nv-gpu", "--cuda", "/nowhere"], "--cuda /nowhere is no CUDA toolkit"),
        (["--source", "/nowhere"], "--source /nowhere is no checkout of InfiniCore"),
        (["--sdist", "/nowhere.tar.gz"], "cannot read the source archive"),
        (["--sdist", __file__], "is not the infinicore 0.1.0 that this script knows"),
    ],
)
def test_refusals(
    capsys: pytest.CaptureFixture[str], machine: Path, arguments: list[str], text: str
) -> None:
    if arguments[0] in ("--sdist", "--source"):  # read in the prefix's own folder
        assert install_infinicore.main(arguments) == 1
        assert text in capsys.readouterr().err
        assert list((machine / "prefix").iterdir()) == []
    else:
        assert text in error_of(capsys, machine, *arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--jobs", "0"], "--jobs is 0, must be at least 1"),
        (["--nv-gpu=maybe"], "expected y or n, not 'maybe'"),
        (["--nv-gpu", "--cuda-arch", "80"], "expected sm_80, or several as sm_80,sm_90: '80'"),
        (["--nv-gpu", "--cuda-arch", ""], "expected sm_80"),
        (["--cuda-arch", "sm_80"], "--cuda, --cuda-arch and --toolkit are for --nv-gpu"),
        (["--toolkit", "pypi"], "--cuda, --cuda-arch and --toolkit are for --nv-gpu"),
        (["--nv-gpu", "--cuda", "/usr", "--toolkit", "pypi"], "choose"),
        (["--source", ".", "--sdist", "x.tar.gz"], "exclude each other"),
        (["--warp-drive"], "unrecognized arguments: --warp-drive"),
    ],
)
def test_bad_arguments(
    capsys: pytest.CaptureFixture[str], machine: Path, arguments: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        install_infinicore.main(arguments)
    assert stop.value.code == 2 and text in capsys.readouterr().err


def test_no_compiler(capsys: pytest.CaptureFixture[str], machine: Path) -> None:
    (machine / "bin" / "g++").unlink()
    assert "apt-get install g++" in error_of(capsys, machine)


# ------------------------------------------------------------------ CUDA


@pytest.mark.parametrize("release", ["11.8", "12.4", "13.0"])
def test_toolkits(machine: Path, release: str) -> None:
    arguments = ["--requirements", "--nv-gpu", "--cuda", str(toolkit(machine, release))]
    assert install_infinicore.main(arguments) == 0
    assert not (machine / "prefix").exists()


@pytest.mark.parametrize("release", ["10.2", "14.0"])
def test_other_toolkits(capsys: pytest.CaptureFixture[str], machine: Path, release: str) -> None:
    text = error_of(capsys, machine, "--nv-gpu", "--cuda", str(toolkit(machine, release)))
    assert f"is CUDA {release}: InfiniCore needs CUDA 11, 12 or 13" in text


@pytest.mark.parametrize("part", PARTS)
def test_incomplete_toolkits(
    capsys: pytest.CaptureFixture[str], machine: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Such as a folder whose nvcc is a script that calls another one."""
    folder = toolkit(machine, "13.0", without=part)
    assert f"has no {part}" in error_of(capsys, machine, "--nv-gpu", "--cuda", str(folder))
    monkeypatch.setenv("CUDA_HOME", str(folder))
    text = error_of(capsys, machine, "--nv-gpu")
    assert f"lacks {part}" in text and "--toolkit pypi" in text


def test_no_toolkit(capsys: pytest.CaptureFixture[str], machine: Path) -> None:
    text = error_of(capsys, machine, "--nv-gpu")
    assert "version 11, 12 or 13" in text and "--toolkit pypi" in text


def test_old_driver(capsys: pytest.CaptureFixture[str], machine: Path) -> None:
    gpu(machine, "9.0", "550.54.14")
    text = error_of(capsys, machine, "--nv-gpu", "--cuda", str(toolkit(machine, "13.0")))
    assert "need driver 580 or newer; this machine has 550" in text
    arguments = ["--requirements", "--nv-gpu", "--cuda", str(toolkit(machine, "12.4"))]
    assert install_infinicore.main(arguments) == 0


def test_architectures_of_the_toolkit(capsys: pytest.CaptureFixture[str], machine: Path) -> None:
    arguments = ["--nv-gpu", "--cuda", str(toolkit(machine, "13.0")), "--cuda-arch", "sm_70,sm_90a"]
    text = error_of(capsys, machine, *arguments)
    assert (
        "CUDA 13.0 does not compile for sm_70: it knows compute_75, compute_80, compute_90" in text
    )


def test_no_card(capsys: pytest.CaptureFixture[str], machine: Path) -> None:
    """Then the architecture must be named: a kernel for another one does nothing, silently."""
    arguments = ["--requirements", "--nv-gpu", "--cuda", str(toolkit(machine, "12.4"))]
    (machine / "bin" / "nvidia-smi").unlink()
    assert "--cuda-arch sm_80" in error_of(capsys, machine, *arguments)
    assert install_infinicore.main([*arguments, "--cuda-arch", "sm_90,sm_80"]) == 0
    script(machine / "bin" / "nvidia-smi", "echo 'No devices were found'; exit 6")
    assert "--cuda-arch sm_80" in error_of(capsys, machine, *arguments)


def test_nccl(capsys: pytest.CaptureFixture[str], machine: Path) -> None:
    arguments = ["--nv-gpu", "--ccl", "--cuda", str(toolkit(machine, "12.4"))]
    assert "install libnccl-dev" in error_of(capsys, machine, *arguments)


def test_toolkit_of_packages(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have one tree, without lib64 and the libraries' short names. It is made once."""
    calls = []

    class Pip(install_infinicore.Runner):
        def run(self, command, cwd, env, what):  # type: ignore[no-untyped-def]
            calls.append(command)
            tree = Path(command[command.index("--target") + 1]) / "nvidia" / "cu13"
            script(tree / "bin" / "nvcc", "")
            for part in ("include/cuda_runtime.h", "include/cublas_v2.h", "lib/libcublas.so.13"):
                (tree / part).parent.mkdir(parents=True, exist_ok=True)
                (tree / part).touch()

    folder = machine / "toolkit"
    for _ in range(2):
        assert cuda.toolkit_from_pypi(folder, Pip(False)) == folder
    assert len(calls) == 1 and calls[0][-1] == str(ROOT / "scripts/requirements/cuda.txt")
    assert cuda.missing_parts(folder) == []
    assert (folder / "lib64" / "libcublas.so").resolve().name == "libcublas.so.13"
    monkeypatch.setattr(cuda, "CHECKOUT", None)
    with pytest.raises(install_infinicore.InstallError, match="needs the repository"):
        cuda.toolkit_from_pypi(folder, Pip(False))


def test_packages_of_the_toolkit_are_pinned() -> None:
    lines = (ROOT / "scripts/requirements/cuda.txt").read_text().splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert names and all(re.fullmatch(r"nvidia-[a-z-]+==[\d.]+", line) for line in names)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("crt/host_config.h: error: -- unsupported GNU version! gcc versions later", "NVCC_CCBIN"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_70'", "--list-gpu-arch"),
        ('error: namespace "cub" has no member "Max"', "report the version of nvcc"),
        ("sh: 1: cicc: not found", "nvidia-nvvm"),
        ("/usr/bin/ld: cannot find -lcublas: No such file", "--toolkit pypi"),
        ("fatal error: nccl.h: No such file or directory", "libnccl-dev"),
        ("ld: final link failed: No space left on device", "2 GB"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "--jobs 1"),
    ],
)
def test_known_failures(tmp_path: Path, output: str, text: str) -> None:
    script(
        tmp_path / "compiler",
        f'echo "{output}"; exit 2'.replace('"cub"', "cub").replace('"Max"', "Max"),
    )
    with pytest.raises(install_infinicore.InstallError) as failure:
        install_infinicore.Runner(False).run(
            [str(tmp_path / "compiler")], tmp_path, {}, "compiling"
        )
    assert text in str(failure.value) and "compiling failed with status 2" in str(failure.value)


def test_every_failure_is_tried() -> None:
    assert len(KNOWN_FAILURES) == 8
    assert advice_for("all is well") is None
