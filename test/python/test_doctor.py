"""infinicore_infer/tools/doctor.py: what it finds, here and in broken installations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer import arguments
from infinicore_infer.tools import doctor
from infinicore_infer.tools.doctor import SelfTest
from libinfinicore_infer import DeviceType, load_library
from python.helpers import DEMO

TOKENS = [5, 6, 7]


def module_file() -> Path:
    return Path(load_library()._name).with_name("libinfinicore_infer_infini.so")


def has_module() -> bool:
    return module_file().is_file()


def run(*arguments: str, **environment: str) -> tuple[int, list[dict[str, Any]]]:
    result = subprocess.run(
        [sys.executable, "-m", "infinicore_infer.tools.doctor", "--json", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, json.loads(result.stdout)


def test_this_installation() -> None:
    status, findings = run()
    assert status == 0, findings
    topics = [finding["topic"] for finding in findings]
    assert topics[:4] == ["python", "packages", "machine", "library"]
    assert "self-test cpu" in topics
    assert all(finding["advice"] for finding in findings if finding["state"] != "ok")


def test_plain_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--no-self-test"]) == 0
    output = capsys.readouterr().out
    assert "ok       python: " in output and "ABI 1" in output
    assert "self-test" not in output


def test_no_library(tmp_path: Path) -> None:
    status, findings = run(INFINICORE_INFER_LIB=str(tmp_path / "none.so"))
    assert status == 1
    assert findings[-1]["topic"] == "library" and findings[-1]["state"] == "problem"
    assert "INFINICORE_INFER_LIB" in findings[-1]["advice"]


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("no such library: x (from INFINICORE_INFER_LIB)", "unset it"),
        ("library and scripts are from different versions", "xmake build"),
    ],
)
def test_library_advice(message: str, advice: str) -> None:
    assert advice in doctor.library_advice(message)


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        ("libinfiniop.so: cannot open shared object file", "LD_LIBRARY_PATH"),
        ("libgomp.so.1: cannot open shared object file", "libgomp1"),
        ("INFINI_ROOT=/x; /x/lib/libinfinirt.so: file too short", "unset it"),
    ],
)
def test_infinicore_advice(problem: str, advice: str) -> None:
    assert advice in doctor.infinicore_advice(problem)


def infinicore(status: int, *arguments: str, **environment: str) -> dict[str, Any]:
    """The finding about InfiniCore in a process that must end with ``status``."""
    ended, findings = run("--no-self-test", *arguments, **environment)
    assert ended == status, findings
    assert [f["topic"] for f in findings[:4]] == ["python", "packages", "machine", "library"]
    (finding,) = (f for f in findings if f["topic"] == "infinicore")
    return finding


@pytest.mark.skipif(not has_module(), reason="the InfiniCore module was not built")
def test_infinicore_that_is_broken_or_missing(tmp_path: Path) -> None:
    """A root that was named must be right; no InfiniCore at all is no problem on a CPU."""
    finding = infinicore(1, INFINI_ROOT=str(tmp_path))
    assert finding["state"] == "problem" and "unset it" in finding["advice"]
    assert f"{tmp_path}/lib/libinfinirt.so: cannot open" in finding["text"]
    (tmp_path / "libinfinicore_infer_infini.so").write_bytes(module_file().read_bytes())
    (tmp_path / "libinfinirt.so").write_text("no library")
    named = {"INFINICORE_INFER_MODULE": str(tmp_path / "libinfinicore_infer_infini.so")}
    finding = infinicore(1, INFINI_ROOT="", LD_LIBRARY_PATH=str(tmp_path), **named)
    assert finding["state"] == "problem" and "file too short" in finding["text"]
    assert "compiled for InfiniCore" in finding["text"]


@pytest.mark.skipif(not has_module(), reason="the InfiniCore module was not built")
def test_module_that_is_broken(tmp_path: Path) -> None:
    broken = tmp_path / "libinfinicore_infer_infini.so"
    broken.write_text("no library")
    finding = infinicore(1, INFINICORE_INFER_MODULE=str(broken))
    assert finding["state"] == "problem" and "its module: " in finding["text"]
    assert "belong together" in finding["advice"]


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    problems = [finding for finding in doctor.check_python() if finding.state == "problem"]
    assert [finding.text for finding in problems] == ["missing: no-such-package"]
    assert "pip install no-such-package" in problems[0].advice


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: {"MemAvailable": 2**28, "MemTotal": 2**30})
    monkeypatch.setattr(doctor, "numa_nodes", lambda: 1)
    (finding,) = doctor.check_machine()
    assert finding.state == "problem" and "0.2 of 1.0 GiB" in finding.text


def test_numa_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of made-up ones, the second has memory only."""
    for node, cpus in enumerate(("0-7\n", "\n", "8-15\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cpus)
    nodes = doctor.numa_nodes(tmp_path)
    assert nodes == 2 and doctor.numa_nodes(tmp_path / "none") == 0
    monkeypatch.setattr(doctor, "numa_nodes", lambda: nodes)
    _, finding = doctor.check_machine()
    assert finding.state == "note" and "--ndev 2" in finding.advice
    monkeypatch.setattr(doctor, "numa_nodes", lambda: 1)
    assert len(list(doctor.check_machine())) == 1


def test_without_infinicore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "build_info", lambda lib: {"infinicore": "none"})
    findings, counts = doctor.check_infinicore(load_library())
    assert [finding.state for finding in findings] == ["note"] and counts == {}
    assert "install_infinicore.py" in findings[0].advice


def test_devices_cannot_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: str) -> dict[DeviceType, int]:
        raise OSError("InfiniCore could not count devices (status 1)")

    monkeypatch.setattr(doctor, "build_info", lambda lib: {"infinicore": "0.1.0"})
    module = doctor.Module("9.9.9", "0.1.0", "/opt/infinicore/lib")
    monkeypatch.setattr(doctor, "load_module", lambda lib: module)
    monkeypatch.setattr(doctor, "device_counts", fail)
    findings, counts = doctor.check_infinicore(load_library())
    assert findings[-1].state == "problem" and "driver" in findings[-1].advice and counts == {}


@pytest.mark.parametrize(
    ("answer", "text", "advice"),
    [
        (SelfTest(TOKENS), "the CPU's tokens", ""),
        (SelfTest(TOKENS, avoids="add,embedding"), "came out; replaced: add", ""),
        (SelfTest([5, 6, 8]), "differ from the CPU's", "do not use nvidia:1"),
        (SelfTest([], "killed by signal 11"), "signal 11", "driver"),
        (SelfTest([], "x (QWEN3_STATUS_OUT_OF_MEMORY)"), "OUT_OF_MEMORY", "end other programs"),
        (SelfTest([], "InfiniCore fails the self-test: rope"), "rope", "another device"),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, answer: SelfTest, text: str, advice: str) -> None:
    """Each device is tested; one that fails is named and the others go on."""

    def answers(folder: Path, device: str, index: int, backend: str) -> SelfTest:
        return answer if index == 1 else SelfTest(TOKENS)

    monkeypatch.setattr(doctor, "run_self_test", answers)
    findings = list(doctor.check_generation({DeviceType.DEVICE_TYPE_NVIDIA: 3}))
    assert [f.topic for f in findings] == [
        f"self-test {name}" for name in ("cpu", "nvidia:0", "nvidia:1", "nvidia:2")
    ]
    states = ["ok", "ok", "problem" if advice else "ok", "ok"]
    assert [finding.state for finding in findings] == states
    assert text in findings[2].text and advice in findings[2].advice


def test_without_the_demo_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in an installed package; --model-path names another checkpoint."""
    monkeypatch.setattr(arguments, "DEMO", None)
    (finding,) = doctor.check_generation({})
    assert finding.state == "note" and "--model-path" in finding.advice
    (finding,) = doctor.check_generation({}, str(tmp_path / "none"))
    assert finding.state == "problem" and "none is not here" in finding.text
    (finding,) = doctor.check_generation({}, str(DEMO))
    assert finding.state == "ok" and finding.text.endswith("tokens from qwen3-tiny")


def test_self_test_that_crashes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "doctor.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(doctor, "_SELF", (sys.executable, str(script)))
    assert doctor.run_self_test(DEMO, "nvidia", 0, "infinicore") == SelfTest(
        [], "killed by signal 11"
    )
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(doctor, "SELF_TEST_SECONDS", 0.5)
    assert doctor.run_self_test(DEMO, "nvidia", 0, "infinicore") == SelfTest(
        [], "no answer within 0.5 s"
    )
