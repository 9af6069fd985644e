#!/usr/bin/env python3
"""Says what is installed, which devices there are, and whether each gives the right tokens.

Every problem comes with one line of advice. The exit status is 0 when all is well, 1 when not.
Without a checkout of the repository, which has the demo model, the devices are tried with the
checkpoint that --model-path names.

Example::

    qwen3-doctor
    qwen3-doctor --model-path Qwen3-0.6B
    qwen3-doctor --json --no-self-test
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from libinfinicore_infer import DeviceType, Qwen3LibraryError, load_library

from infinicore_infer.arguments import add_model_path, model_folder
from infinicore_infer.paths import CHECKOUT

PACKAGES = ("numpy", "tokenizers", "jinja2")
MAX_DEVICE_TYPES = 32  # more than any InfiniCore knows; it writes one count for each of its own
# "What is the capital of France?" to the demo model, whose answer leaves no room for rounding; some
# text or other to other models.
PROMPT_TOKENS = (2001, 304, 198, 302, 271, 259, 314, 289, 1454, 30, 2002, 198, 2001, 1047, 198)
NEW_TOKENS = 8
SELF_TEST_SECONDS = 180
# 0.1.0 has none of them
NEWER_OPERATORS = ("add_rms_norm", "embedding", "silu_and_mul", "paged_attention", "graphs")
MODULE_ENV = "INFINICORE_INFER_MODULE"
MODULE_NAME = "libinfinicore_infer_infini.so"
_SELF = (sys.executable, "-m", "infinicore_infer.tools.doctor")
# What repairs this installation, and what installs InfiniCore.
if CHECKOUT:
    SETUP = "run scripts/setup.sh"
    INSTALL = "python scripts/install_infinicore.py"
else:
    SETUP = "reinstall the package infinicore-infer-qwen3"
    INSTALL = "qwen3-install-infinicore"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: What was looked at.
        state: ``"ok"``, ``"note"`` (works, but worth knowing) or ``"problem"``.
        text: What was found.
        advice: What to do about it; empty when there is nothing to do.
    """

    topic: str
    state: str
    text: str
    advice: str = ""


def check_python() -> Iterator[Finding]:
    """Check Python and the packages that the scripts import."""
    version = platform.python_version()
    where = f"{version} on {platform.system()} {platform.machine()}"
    yield Finding("python", "ok", where)  # an older one than 3.10 cannot import this file
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        venv = " and use .venv/bin/python" if CHECKOUT else ""
        advice = f"{SETUP}{venv}, or pip install {' '.join(missing)}"
        yield Finding("packages", "problem", f"missing: {', '.join(missing)}", advice)
    if found:
        yield Finding("packages", "ok", ", ".join(found))


def memory_bytes() -> dict[str, int]:
    """Return /proc/meminfo in bytes; empty where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return {}
    fields = (line.replace(":", "").split() for line in lines)
    return {name: int(value) * 1024 for name, value, *unit in fields if unit == ["kB"]}


def numa_nodes(root: Path = Path("/sys/devices/system/node")) -> int:
    """Return how many NUMA nodes have CPUs; 0 where the system does not say."""
    try:
        return sum(
            path.read_text("ascii").strip() != "" for path in root.glob("node[0-9]*/cpulist")
        )
    except OSError:
        return 0


def check_machine() -> Iterator[Finding]:
    """Check CPUs and memory of the host."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = memory_bytes()
    free, total = memory.get("MemAvailable", 0), memory.get("MemTotal", 0)
    text = f"{cpus} usable CPUs, {free / 2**30:.1f} of {total / 2**30:.1f} GiB memory available"
    if memory and free < 2**30:
        advice = "end other programs: even Qwen3-0.6B needs 1.5 GiB"
        yield Finding("machine", "problem", text, advice)
    else:
        yield Finding("machine", "ok", text)
    if (nodes := numa_nodes()) > 1:
        advice = f"for the CPU: --ndev {nodes} keeps each node's part in memory of its own"
        text = f"{nodes} NUMA nodes; --ndev is 1 unless given"
        yield Finding("machine", "note", text, advice)


def build_info(lib: ctypes.CDLL) -> dict[str, str]:
    """Return the library's description of itself, by name."""
    line = (lib.qwen3BuildInfo(None) or b"").decode("utf-8", "replace")
    return dict(pair.split("=", 1) for pair in line.split() if "=" in pair)


def library_advice(message: str) -> str:
    """Return what to do about a library that could not be loaded."""
    if "INFINICORE_INFER_LIB" in message:
        return "set INFINICORE_INFER_LIB to the library's file, or unset it"
    rebuild = ", or rebuild with .venv/bin/xmake build infinicore_infer" if CHECKOUT else ""
    return SETUP + rebuild


def check_library() -> tuple[list[Finding], ctypes.CDLL | None]:
    """Load the library; its ABI version and structure sizes are compared on the way."""
    try:
        lib = load_library()
    except Qwen3LibraryError as error:
        text = str(error)
        return [Finding("library", "problem", text, library_advice(text))], None
    version = (lib.qwen3Version() or b"").decode("utf-8", "replace")
    info = " ".join(f"{name}={value}" for name, value in build_info(lib).items())
    text = f"{lib._name}: version {version}, ABI {lib.qwen3AbiVersion()} as the scripts'; {info}"
    return [Finding("library", "ok", text)], lib


class ModuleTable(ctypes.Structure):
    """The beginning of ``Table`` in src/ops/module/seam.h."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("version", ctypes.c_char_p),
        ("layout", ctypes.c_uint64),
        ("infinicore", ctypes.c_char_p),
        ("error", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        ("load", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32)),
        ("infinicore_folder", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    )


@dataclass(frozen=True)
class Module:
    """The InfiniCore module, and the InfiniCore that it finds.

    Attributes:
        version: Of this project.
        infinicore: The InfiniCore whose headers the module was compiled with.
        folder: Where InfiniCore's libraries were loaded from; empty when they were not.
        problem: Why they were not.
    """

    version: str
    infinicore: str
    folder: str
    problem: str = ""


def load_module(lib: ctypes.CDLL) -> Module:
    """Load the module and InfiniCore, as a model on an accelerator does.

    Raises:
        OSError: The module's file does not load.
        AttributeError: The file is no module.
    """
    path = os.environ.get(MODULE_ENV) or str(Path(lib._name).resolve().with_name(MODULE_NAME))
    entry = ctypes.CDLL(path).infinicore_infer_module
    entry.restype = ctypes.POINTER(ModuleTable)
    table = entry().contents
    version = table.version.decode("utf-8", "replace")
    if version != (lib.qwen3Version() or b"").decode("utf-8", "replace"):
        raise OSError(f"{path} is of version {version}, not of the library's")
    problem = table.error().decode("utf-8", "replace") if table.load(0) != 0 else ""
    folder = table.infinicore_folder().decode("utf-8", "replace")
    return Module(version, table.infinicore.decode("utf-8", "replace"), folder, problem)


def infinicore_advice(problem: str) -> str:
    """Return what to do about an InfiniCore that does not load."""
    if "libgomp" in problem:
        return "install GCC's OpenMP run time (Debian, Ubuntu: apt-get install libgomp1)"
    if "INFINI_ROOT=" in problem:
        return f"set INFINI_ROOT to the folder of lib/libinfiniop.so, unset it, or `{INSTALL}`"
    return (
        f"for accelerators: `{INSTALL} --nv-gpu` (or another device); an InfiniCore that was built "
        "otherwise needs INFINI_ROOT, and its lib folder in LD_LIBRARY_PATH"
    )


def device_counts(folder: str = "") -> dict[DeviceType, int]:
    """Return how many devices of each type InfiniCore sees; types without any are left out.

    Args:
        folder: Of InfiniCore's libraries; empty for those that the process has loaded.

    Raises:
        OSError: InfiniCore's run-time library is not loaded or did not answer.
    """
    runtime = ctypes.CDLL(str(Path(folder) / "libinfinirt.so"))
    counts = (ctypes.c_int * MAX_DEVICE_TYPES)()
    status = runtime.infinirtInit()
    if status == 0:
        status = runtime.infinirtGetAllDeviceCount(counts)
    if status != 0:
        raise OSError(f"InfiniCore could not count devices (status {status})")
    return {device: counts[device] for device in DeviceType if counts[device] > 0}


def check_infinicore(lib: ctypes.CDLL) -> tuple[list[Finding], dict[DeviceType, int]]:
    """Check the module and InfiniCore, and list its devices."""
    if build_info(lib).get("infinicore", "none") == "none":
        advice = f"for accelerators: `{INSTALL} --nv-gpu` (or another device), then {SETUP}"
        text = f"{MODULE_NAME} was not built: CPU only"
        return [Finding("infinicore", "note", text, advice)], {}
    try:
        module = load_module(lib)
    except (OSError, AttributeError) as error:
        advice = f"{SETUP}, or install the library again: it and its module belong together"
        return [Finding("infinicore", "problem", f"its module: {error}", advice)], {}
    built = f"module {module.version}, compiled for InfiniCore {module.infinicore}"
    if module.problem:
        nowhere = all("cannot open" in reason for reason in module.problem.split("; "))
        state = "note" if nowhere and not os.environ.get("INFINI_ROOT") else "problem"
        text = f"{built}: {module.problem}"
        return [Finding("infinicore", state, text, infinicore_advice(module.problem))], {}
    findings = [Finding("infinicore", "ok", f"{built}; {module.folder}")]
    try:
        counts = device_counts(module.folder)
    except (OSError, AttributeError) as error:
        advice = "check the accelerator's driver (for NVIDIA: nvidia-smi)"
        return [*findings, Finding("devices", "problem", str(error), advice)], {}
    names = ", ".join(f"{count} {device.label}" for device, count in counts.items())
    findings.append(Finding("devices", "ok", names or "none"))
    if not set(counts) - {DeviceType.DEVICE_TYPE_CPU}:
        advice = f"if there is one: `{INSTALL} --nv-gpu` (or another device)"
        findings.append(Finding("devices", "note", "InfiniCore sees no accelerator", advice))
    return findings, counts


# ---------------------------------------------------------------------------- self-test


@dataclass(frozen=True)
class SelfTest:
    """What a device made of the model.

    Attributes:
        tokens: Its greedy tokens; empty when it failed.
        problem: What went wrong; empty when nothing did.
        avoids: InfiniCore operators that the library replaced there, as in ``qwen3BuildInfo``.
    """

    tokens: list[int]
    problem: str = ""
    avoids: str = ""


def generate(folder: Path, device: str, index: int, backend: str) -> SelfTest:
    """Generate greedily with a model on a device."""
    from infinicore_infer.causal_lm import Qwen3ForCausalLM

    with Qwen3ForCausalLM(folder, device=device, dev_ids=[index], backend=backend) as model:
        prompt = [token % model.meta.dvoc for token in PROMPT_TOKENS]
        result = model.generate(prompt, max_steps=NEW_TOKENS, temperature=0.0, ignore_eos=True)
        avoids = model.native.build_info().get("avoids", "")
    return SelfTest(list(result.tokens), avoids=avoids)


def self_test_advice(device: str, text: str) -> str:
    """Return what to do about a device that failed its self-test."""
    if "fails the self-test" in text:
        return (
            "InfiniCore is wrong or incomplete there: use another device, or another version of "
            "InfiniCore; docs/devices.md says which operators can be avoided"
        )
    if "OUT_OF_MEMORY" in text:
        return f"end other programs that use {device}"
    if "differ" in text:
        return f"do not use {device}: report this with the output of this program"
    return f"check the driver of {device}; docs/devices.md says what is known of it"


def run_self_test(folder: Path, device: str, index: int, backend: str) -> SelfTest:
    """Generate in a process of its own."""
    command = [*_SELF, "--model-path", str(folder), "--generate", device, str(index), backend]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=SELF_TEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return SelfTest([], f"no answer within {SELF_TEST_SECONDS} s")
    if result.returncode < 0:
        return SelfTest([], f"killed by signal {-result.returncode}")
    lines = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
    if result.returncode != 0 or not lines:
        return SelfTest([], lines[-1] if lines else f"exit status {result.returncode}")
    return SelfTest(**json.loads(lines[-1]))


def replaced_operators(avoids: str) -> str:
    """Return which of 0.1.0's operators the library replaced, for the report."""
    names = [name for name in avoids.split(",") if name not in ("", "none", *NEWER_OPERATORS)]
    return f"; replaced: {', '.join(names)}" if names else ""


def check_generation(
    counts: dict[DeviceType, int], model_path: str | None = None
) -> Iterator[Finding]:
    """Generate on the CPU and on each device of InfiniCore, and compare."""
    try:
        folder = model_folder(model_path)
    except ValueError:
        text = "not done: only a checkout of the repository has the demo model"
        yield Finding("self-test", "note", text, "name a checkpoint with --model-path")
        return
    if not folder.exists():
        yield Finding("self-test", "problem", f"{folder} is not here", "check --model-path")
        return
    expected = run_self_test(folder, "cpu", 0, "cpu")
    if expected.problem:
        advice = f"{SETUP}; if it stays, report this"
        yield Finding("self-test cpu", "problem", expected.problem, advice)
        return
    yield Finding("self-test cpu", "ok", f"{len(expected.tokens)} tokens from {folder.name}")
    for device, count in counts.items():
        for index in range(count):
            name = f"{device.label}:{index}"
            found = run_self_test(folder, device.label, index, "infinicore")
            problem = found.problem
            if not problem and found.tokens != expected.tokens:
                difference = f"{found.tokens} instead of {expected.tokens}"
                problem = f"tokens differ from the CPU's: {difference}"
            if problem:
                advice = self_test_advice(name, problem)
                yield Finding(f"self-test {name}", "problem", problem, advice)
            else:
                text = "operators passed, and the CPU's tokens came out"
                text += replaced_operators(found.avoids)
                yield Finding(f"self-test {name}", "ok", text)


def examine(self_test: bool, model_path: str | None = None) -> Iterator[Finding]:
    """Yield all findings, in the order of the report.

    Args:
        self_test: Whether to generate on every device.
        model_path: The checkpoint to do that with; ``None``: the demo model.
    """
    python = list(check_python())
    yield from python
    yield from check_machine()
    findings, lib = check_library()
    yield from findings
    if lib is None:
        return
    findings, counts = check_infinicore(lib)
    yield from findings
    if self_test and all(finding.state != "problem" for finding in python):
        yield from check_generation(counts, model_path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="qwen3-doctor",
        description="Check the installation and the devices; every problem comes with advice.",
    )
    add_model_path(parser)
    parser.add_argument(
        "--json", action="store_true", help="write the findings as one JSON list instead of text"
    )
    parser.add_argument(
        "--no-self-test",
        action="store_true",
        help="do not try the devices by generating with the model on each",
    )
    parser.add_argument("--generate", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.generate:
        device, index, backend = args.generate
        folder = model_folder(args.model_path)
        print(json.dumps(asdict(generate(folder, device, int(index), backend))))
        return 0
    findings = []
    for finding in examine(not args.no_self_test, args.model_path):
        findings.append(finding)
        if not args.json:
            print(f"{finding.state:<8} {finding.topic}: {finding.text}")
            if finding.advice:
                print(f"{'':<8} -> {finding.advice}", flush=True)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return int(any(finding.state == "problem" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
