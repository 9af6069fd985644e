"""install_infinicore.py up to the build: refusals say what to do, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from infinicore_infer.tools import install_infinicore


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a C++ compiler only, no toolkit's variables, and a prefix that is not there."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program(bin_folder / "g++", "")
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setenv("INFINI_ROOT", str(tmp_path / "prefix"))
    monkeypatch.setattr(install_infinicore, "find_xmake", lambda: "xmake")
    monkeypatch.setattr(install_infinicore, "gpu_is_visible", lambda: True)
    monkeypatch.setattr(install_infinicore, "has_library", lambda name: False)
    variables = [v for _, names, _ in install_infinicore.DEVICES.values() for v in names]
    for name in (*variables, "CXX", "CUDA_HOME", "CUDA_PATH", "NCCL_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def program(path: Path, output: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)


def cuda(machine: Path, release: str) -> Path:
    """A toolkit that says it is of that release."""
    program(machine / f"cuda-{release}" / "bin" / "nvcc", f"Cuda tools, release {release}, V1")
    return machine / f"cuda-{release}"


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
        (["--sdist", "/nowhere.tar.gz"], "cannot read the source archive"),
        (["--sdist", __file__], "is not the infinicore 0.1.0 that this script knows"),
    ],
)
def test_refusals(
    capsys: pytest.CaptureFixture[str], machine: Path, arguments: list[str], text: str
) -> None:
    if "--sdist" in arguments:  # read in the prefix's own folder
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
        (["--cuda-arch", "sm_80"], "--cuda and --cuda-arch are for --nv-gpu"),
        (["--cuda", "/usr/local/cuda"], "--cuda and --cuda-arch are for --nv-gpu"),
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


def test_cuda_13(capsys: pytest.CaptureFixture[str], machine: Path) -> None:
    text = error_of(capsys, machine, "--nv-gpu", "--cuda", str(cuda(machine, "13.1")))
    assert "is CUDA 13.1" in text and "does not compile with CUDA 13" in text
    assert "Name a CUDA 12 toolkit with --cuda DIR" in text


def test_nccl(capsys: pytest.CaptureFixture[str], machine: Path) -> None:
    toolkit = str(cuda(machine, "12.4"))
    text = error_of(capsys, machine, "--nv-gpu", "--ccl", "--cuda", toolkit)
    assert "install libnccl-dev" in text


def test_requirements(
    capsys: pytest.CaptureFixture[str], machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only looked at; without a GPU its architecture must be named."""
    toolkit = str(cuda(machine, "12.4"))
    arguments = ["--requirements", "--nv-gpu", "--cuda", toolkit]
    assert install_infinicore.main(arguments) == 0
    monkeypatch.setattr(install_infinicore, "gpu_is_visible", lambda: False)
    assert "name what it has: --cuda-arch sm_80" in error_of(capsys, machine, *arguments)
    assert install_infinicore.main([*arguments, "--cuda-arch", "sm_90,sm_80"]) == 0
    assert not (machine / "prefix").exists()


def test_architectures(machine: Path) -> None:
    """They get into InfiniCore's build file, and belong to what is installed."""
    folder = machine / "source" / "xmake"
    folder.mkdir(parents=True)
    head = "".join(
        f'target("{name}")\n    set_kind("shared")\n' for name in install_infinicore.TARGETS
    )
    main_file = f'add_requires("pybind11")\n{head}target("infinicore")\n'
    (machine / "source" / "xmake.lua").write_text(main_file)
    openmp = '    add_requires("openmp")\n    add_packages("openmp")\n'
    (folder / "cpu.lua").write_text(openmp)
    (folder / "nvidia.lua").write_text('    add_cugencodes("native")\n')
    args = install_infinicore.parse_args(["--nv-gpu", "--cuda_arch=sm_90a,sm_80,sm_80"])
    install_infinicore.patch(machine / "source", args.cuda_arch)
    assert (folder / "nvidia.lua").read_text() == '    add_cugencodes("sm_80", "sm_90a")\n'

    wanted = install_infinicore.wanted(args)
    assert wanted["cuda-arch"] == "sm_80,sm_90a" and wanted["nv-gpu"] == "y"
    plain = install_infinicore.wanted(install_infinicore.parse_args(["--nv-gpu"]))
    assert "cuda-arch" not in plain  # as installations of earlier versions of this script
    prefix = machine / "prefix"
    prefix.mkdir()
    stamp = {
        "version": install_infinicore.VERSION,
        "sha256": install_infinicore.SHA256,
        "recipe": install_infinicore.RECIPE,
        "flags": wanted,
        "files": [],
    }
    (prefix / install_infinicore.STAMP).write_text(json.dumps(stamp))
    assert install_infinicore.is_current(prefix, wanted, any_flags=False)
    assert not install_infinicore.is_current(prefix, plain, any_flags=False)
    assert install_infinicore.is_current(prefix, plain, any_flags=True)
