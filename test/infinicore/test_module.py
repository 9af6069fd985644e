"""The seam between the library and the module of the InfiniCore backend (src/ops/module).

The module of most tests is test/fake_module: the CPU's backend seen through the seam, which fails
on request. Each test runs in a process of its own, since a process loads one module for good.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from infinicore.conftest import DEMO, ROOT, with_root
from libinfinicore_infer import load_library

ENVIRONMENT = {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT / 'test'}"}

PROGRAM = """
import json, os, sys
from infinicore_infer.native.model import StepRequest, sampling_struct
from qwen3 import Qwen3ForCausalLM

DEMO = {demo!r}

def throw(what):
    os.environ["FAKE_MODULE_THROW"] = what

def tokens(model):
    result = model.generate([1, 2, 3, 4, 5], max_steps=12, temperature=0.0, ignore_eos=True)
    return list(result.tokens)

def opened(**options):
    return Qwen3ForCausalLM(DEMO, threads=1, **options)

def step(model):  # unlike generate, it raises when it is cancelled
    cache = model.create_kv_cache()
    try:
        model.native.step([StepRequest(cache, [1, 2, 3, 4, 5], 0, sampling_struct())])
    finally:
        cache.close()

def failure(action):
    try:
        action()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None

def answer(value):
    print(json.dumps(value))
"""


def run(program: str, env: dict[str, str]) -> Any:
    """Runs the program after PROGRAM; returns what it answers."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(demo=str(DEMO)) + program],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def fake_module(fake_folder: Path) -> Path:
    return fake_folder.parent / "fake_module" / "libinfinicore_infer_infini.so"


@pytest.fixture(scope="module")
def environment(fake_module: Path) -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, "INFINICORE_INFER_MODULE": str(fake_module)}


# ------------------------------------------------------------------ what is linked and loaded


def test_library_links_nothing_of_infinicore() -> None:
    """Nor does the module: it looks for InfiniCore when a model asks for it."""
    library = Path(load_library()._name)
    for file in (library, library.with_name("libinfinicore_infer_infini.so")):
        if not file.exists():
            pytest.skip(f"{file.name} was not built")
        text = subprocess.run(
            ["readelf", "-dW", file], capture_output=True, text=True, check=True
        ).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
        assert needed and not [n for n in needed if "infini" in n or "omp" in n], needed


def test_module_exports_one_symbol(fake_folder: Path) -> None:
    module = fake_folder.parent / "libinfinicore_infer_infini.so"
    text = subprocess.run(
        ["nm", "-D", "--defined-only", module], capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[-1] for line in text.splitlines()] == ["infinicore_infer_module"]


def test_cpu_loads_nothing_of_it(fake_folder: Path) -> None:
    names, info = run(
        """
with opened() as model:
    tokens(model)
    maps = open("/proc/self/maps").read().replace("libinfinicore_infer.so", "")
    names = [name for name in ("_infini.so", "libinfini") if name in maps]
    answer([names, model.native.build_info()["infinicore"]])
""",
        with_root(fake_folder, **ENVIRONMENT),
    )
    assert (names, info) == ([], "not-loaded")


# ------------------------------------------------------------------ what is missing or does not fit


CREATE = """
first = failure(lambda: opened(backend="infinicore"))
second = failure(lambda: opened(device="nvidia"))
with opened() as model:
    answer([first, second, len(tokens(model)), model.native.build_info()["infinicore"]])
"""


def refused(env: dict[str, str]) -> tuple[str, str]:
    """The refusal of a model, and what the library then says of InfiniCore; the CPU must go on."""
    first, second, ntokens, info = run(CREATE, env)
    assert ntokens == 12
    assert "QWEN3_STATUS_DEVICE_TYPE_NOT_SUPPORTED" in first[1]
    assert "device cpu needs InfiniCore" in first[1] and "device nvidia needs" in second[1]
    assert (
        first[1].replace("device cpu", "device nvidia").split(":")[:3] == second[1].split(":")[:3]
    )
    return first[1], info


def test_no_module(tmp_path: Path) -> None:
    path = tmp_path / "none.so"
    text, info = refused({**os.environ, **ENVIRONMENT, "INFINICORE_INFER_MODULE": str(path)})
    assert f"its module {path} is not there" in text and info == "none"
    assert "`qwen3-install-infinicore`" in text and "--infinicore=y" in text


def test_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "libinfinicore_infer_infini.so"
    path.write_text("no library")
    text, _ = refused({**os.environ, **ENVIRONMENT, "INFINICORE_INFER_MODULE": str(path)})
    assert "its module does not load" in text and "file too short" in text
    assert "reinstall this library" in text


def test_library_that_is_no_module(fake_folder: Path) -> None:
    path = str(fake_folder / "lib" / "libinfinirt.so")
    text, _ = refused({**os.environ, **ENVIRONMENT, "INFINICORE_INFER_MODULE": path})
    assert "is no module of this library: it has no infinicore_infer_module" in text


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ({"FAKE_MODULE_VERSION": "9.8.7"}, "is of version 9.8.7, this library of "),
        ({"FAKE_MODULE_LAYOUT": "other"}, "but of another build than this library"),
    ],
)
def test_other_version_or_layout(
    environment: dict[str, str], variable: dict[str, str], text: str
) -> None:
    message, info = refused({**environment, **variable})
    assert text in message and "xmake build infinicore_infer" in message
    assert info == "not-loaded"


def test_infinicore_is_missing(fake_folder: Path, tmp_path: Path) -> None:
    """The accelerator is refused, the CPU goes on; all that was tried is told."""
    text, info = refused(with_root(tmp_path / "moved", **ENVIRONMENT))
    assert f"INFINI_ROOT={tmp_path}/moved" in text and info == "0.1.0"
    assert f"{tmp_path}/moved/lib/libinfinirt.so: cannot open shared object file" in text
    assert "`python scripts/install_infinicore.py`" in text and "or set INFINI_ROOT" in text


@pytest.mark.parametrize("name", ["infinirt", "infiniop", "infiniccl"])
def test_infinicore_is_broken(fake_folder: Path, tmp_path: Path, name: str) -> None:
    lib = tmp_path / "lib"
    lib.mkdir()
    for file in (fake_folder / "lib").iterdir():
        (lib / file.name).write_bytes(file.read_bytes())
    (lib / f"lib{name}.so").write_text("no library")
    text, _ = refused(with_root(tmp_path, **ENVIRONMENT))
    assert f"{lib}/lib{name}.so: file too short" in text


def test_infinicore_of_another_kind(fake_folder: Path, tmp_path: Path) -> None:
    """Libraries without the functions: the names of what is missing are told."""
    lib = tmp_path / "lib"
    lib.mkdir()
    for name in ("infinirt", "infiniop", "infiniccl"):
        (tmp_path / "one.c").write_text(f"int {name}Init(void) {{ return 0; }}")
        subprocess.run(
            ["cc", "-shared", "-fPIC", tmp_path / "one.c", "-o", lib / f"lib{name}.so"], check=True
        )
    text, _ = refused(with_root(tmp_path, **ENVIRONMENT))
    assert (
        f"{lib} is no InfiniCore that this library knows: it lacks infinirtGetDeviceCount" in text
    )


def test_operators_that_do_not_name_openmp(fake_folder: Path, tmp_path: Path) -> None:
    """As 0.1.0's own build makes them: OpenMP's run-time library is then loaded first."""
    lib = tmp_path / "lib"
    lib.mkdir()
    for name in ("infinirt", "infiniccl"):
        (lib / f"lib{name}.so").symlink_to(fake_folder / "lib" / f"lib{name}.so")
    source = 'extern "C" int omp_get_max_threads(); int uses() { return omp_get_max_threads(); }'
    (tmp_path / "uses.cpp").write_text(source)
    objects = (ROOT / "build/.objs/fake_infiniop/linux").glob("*/release/**/*.o")
    command = ["g++", "-shared", "-fPIC", *objects, tmp_path / "uses.cpp", f"-L{lib}", "-linfinirt"]
    subprocess.run(
        [*command, "-Wl,-soname,libinfiniop.so", "-o", lib / "libinfiniop.so"], check=True
    )
    ntokens = run(
        """
with opened(device="nvidia") as model:
    answer(len(tokens(model)))
""",
        with_root(tmp_path, **ENVIRONMENT),
    )
    assert ntokens == 12


def test_infinicore_in_the_home_folder(fake_folder: Path, tmp_path: Path) -> None:
    """Found where the installer puts it. A module without run path, as the build's comes first."""
    (tmp_path / ".infini").symlink_to(fake_folder)
    module = fake_folder.parent / "fake_newer" / "libinfinicore_infer_infini.so"
    env = {**os.environ, **ENVIRONMENT, "HOME": str(tmp_path), "INFINI_ROOT": ""}
    env |= {"INFINICORE_INFER_MODULE": str(module), "LD_LIBRARY_PATH": ""}
    ntokens, info = run(
        """
with opened(device="nvidia") as model:
    answer([len(tokens(model)), model.native.build_info()])
""",
        env,
    )
    assert ntokens == 12 and info["device"] == "nvidia:0"
    # A module for a newer InfiniCore does with what this one has.
    assert info["avoids"] == "causal,add_rms_norm,embedding,silu_and_mul,paged_attention,graphs"


# ------------------------------------------------------------------ errors cross as status and text


@pytest.mark.parametrize("where", ["load", "create", "connect", "makeLinear", "makeEmbedding"])
@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("error", "QWEN3_STATUS_BAD_PARAM", "of the fake module failed"),
        ("bad_alloc", "QWEN3_STATUS_OUT_OF_MEMORY", "out of host memory"),
        ("runtime_error", "QWEN3_STATUS_INTERNAL_ERROR", "threw a standard exception"),
        ("int", "QWEN3_STATUS_INTERNAL_ERROR", "unknown exception"),
    ],
)
def test_exceptions_at_create(
    environment: dict[str, str], where: str, kind: str, name: str, text: str
) -> None:
    """They come back with status and text, and the next model is made."""
    (_, message), ntokens = run(
        f"""
throw("{where}:{kind}")
error = failure(lambda: opened(backend="infinicore"))
throw("")
with opened(backend="infinicore") as model:
    answer([error, len(tokens(model))])
""",
        environment,
    )
    assert name in message and text in message and ntokens == 12


@pytest.mark.parametrize("where", ["allocateBlock", "beginStep", "attention", "readLogits"])
def test_exceptions_in_steps(environment: dict[str, str], where: str) -> None:
    """The model goes on, with the tokens that the CPU gives."""
    errors, after, expected = run(
        f"""
with opened() as model:
    expected = tokens(model)
with opened(backend="infinicore") as model:
    errors = []
    for kind in ("error", "cancelled", "bad_alloc", "runtime_error", "int"):
        throw("{where}:" + kind)
        errors.append(failure(lambda: step(model)))
    throw("")
    answer([errors, tokens(model), expected])
""",
        environment,
    )
    statuses = ["BAD_PARAM", "CANCELLED", "OUT_OF_MEMORY", "INTERNAL_ERROR", "INTERNAL_ERROR"]
    for error, status in zip(errors, statuses, strict=True):
        assert error is not None and f"QWEN3_STATUS_{status}" in error[1], errors
    assert f"{where} of the fake module failed" in errors[0][1]
    assert after == expected


def test_copied_blocks(environment: dict[str, str]) -> None:
    """A copy of a block that fails leaves both caches usable."""
    error, same = run(
        """
GREEDY = sampling_struct()
with opened(backend="infinicore") as model:
    cache = model.create_kv_cache()
    model.native.step([StepRequest(cache, [1, 2, 3, 4, 5], 0, GREEDY)])
    copy = model.duplicate_kv_cache(cache, 5)
    throw("copyBlock:error")
    error = failure(lambda: model.native.step([StepRequest(copy, [6], 5, GREEDY)]))
    throw("")
    steps = [model.native.step([StepRequest(c, [6], 5, GREEDY)])[0].token for c in (copy, cache)]
    answer([error, steps[0] == steps[1]])
""",
        environment,
    )
    assert "copyBlock of the fake module failed" in error[1] and same


@pytest.mark.parametrize("where", ["attention", "allReduceSum"])
@pytest.mark.parametrize("rank", ["", "@0", "@1"])
def test_errors_of_ranks(environment: dict[str, str], where: str, rank: str) -> None:
    """The rank that failed is named, the other one stops at the barrier, and both go on."""
    error, cancelled, after, expected = run(
        f"""
with opened() as model:
    expected = tokens(model)
with opened(backend="infinicore", ndev=2) as model:
    throw("{where}{rank}:error")
    error = failure(lambda: step(model))
    throw("{where}{rank}:cancelled")
    cancelled = failure(lambda: step(model))
    throw("")
    answer([error, cancelled, tokens(model), expected])
""",
        environment,
    )
    named = rank[1:] or "0"
    assert f"rank {named} of 2: {where} of the fake module failed" in error[1], error
    assert "QWEN3_STATUS_CANCELLED" in cancelled[1] and "rank" not in cancelled[1]
    assert after == expected


def test_sums_of_ranks(environment: dict[str, str]) -> None:
    """The library's barrier and sums reach the module as functions."""
    after, expected, info = run(
        """
with opened() as model:
    expected = tokens(model)
with opened(backend="infinicore", ndev=2) as model:
    answer([tokens(model), expected, model.native.build_info()])
""",
        environment,
    )
    assert after == expected
    assert (info["infinicore"], info["backend"], info["ndev"]) == ("fake", "fake_module", "2")
