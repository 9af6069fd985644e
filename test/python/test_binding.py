"""The ctypes binding against the C header: layouts, numbers, prototypes, errors, loading."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import libinfinicore_infer as binding
import pytest
from libinfinicore_infer import (
    Backend,
    DataType,
    DeviceType,
    Qwen3Cancelled,
    Qwen3Error,
    Qwen3LibraryError,
    Status,
    check,
    load_library,
)
from python.helpers import ROOT, SCRIPTS

HEADER = ROOT / "include" / "infinicore_infer" / "models" / "qwen3.h"

ENUMS: dict[str, tuple[Any, str]] = {
    "Qwen3Status": (Status, "QWEN3_STATUS_"),
    "Qwen3DType": (DataType, "QWEN3_DTYPE_"),
    "Qwen3Device": (DeviceType, "QWEN3_DEVICE_"),
    "Qwen3Backend": (Backend, "QWEN3_BACKEND_"),
    "Qwen3RopeType": (binding.RopeType, "QWEN3_ROPE_"),
    "Qwen3StructKind": (binding.StructKind, "QWEN3_STRUCT_"),
    "Qwen3TensorRole": (binding.TensorRole, "QWEN3_TENSOR_"),
    "Qwen3TensorLayout": (binding.TensorLayout, "QWEN3_LAYOUT_"),
}


@pytest.fixture(scope="module")
def header() -> str:
    """The header without comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", HEADER.read_text("utf-8"), flags=re.S)


def _compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    assert found, "a C compiler is needed, as for building the library"
    return found


def test_struct_layouts_equal_those_of_a_c_compiler(tmp_path: Path) -> None:
    """A compiled C program prints offset and size of every field; ctypes must agree."""
    lines = ["#include <stdio.h>", "#include <infinicore_infer.h>", "int main(void) {"]
    expected = []
    for struct in binding.STRUCTS.values():
        name = struct.__name__
        lines.append(f'printf("{name} %zu %zu\\n", sizeof({name}), _Alignof({name}));')
        expected.append(f"{name} {ctypes.sizeof(struct)} {ctypes.alignment(struct)}")
        for field in (entry[0] for entry in struct._fields_):
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), '
                f"sizeof((({name} *)0)->{field}));"
            )
            descriptor = getattr(struct, field)
            expected.append(f"{name}.{field} {descriptor.offset} {descriptor.size}")
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "return 0; }"]))
    program = tmp_path / "layout"
    include = ["-I", str(ROOT / "include")]
    subprocess.run(
        [_compiler(), "-std=c11", "-Wall", "-Werror", *include, str(source), "-o", str(program)],
        check=True,
    )
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert printed.split("\n")[:-1] == expected


@pytest.mark.parametrize("name", [struct.__name__ for struct in binding.STRUCTS.values()])
def test_no_field_of_the_header_is_missing(name: str, header: str) -> None:
    body = re.search(r"typedef struct \{([^}]*)\} " + name + ";", header)
    assert body
    fields = re.findall(r"(\w+);", body[1])
    ours = getattr(binding, name)._fields_
    assert [entry[0] for entry in ours] == fields


@pytest.mark.parametrize("name", ENUMS)
def test_enums_equal_the_header(name: str, header: str) -> None:
    ours, prefix = ENUMS[name]
    body = re.search(r"typedef enum \{([^}]*)\} " + name + ";", header)
    assert body
    theirs = {key: int(value) for key, value in re.findall(rf"{prefix}(\w+) = (\d+)", body[1])}
    drop = "DEVICE_TYPE_" if ours is DeviceType else ""
    names = {member.name.removeprefix(drop): int(member) for member in ours}
    assert names == theirs


def test_every_function_is_bound_with_its_number_of_arguments(header: str) -> None:
    theirs = {
        name: 0 if arguments.strip() == "void" else arguments.count(",") + 1
        for name, arguments in re.findall(
            r"^QWEN3_API [\w\s\*]*?(\w+)\(([^)]*)\)", header, flags=re.M
        )
    }
    assert {name: len(types) for name, (_, types) in binding.PROTOTYPES.items()} == theirs
    version = re.search(r"QWEN3_ABI_VERSION (\d+)", header)
    assert version and int(version[1]) == binding.ABI_VERSION


def test_library_is_the_one_of_the_header(header: str) -> None:
    lib = load_library()
    assert lib is load_library()
    version = re.search(r'QWEN3_VERSION_STRING "([^"]+)"', header)
    assert version and lib.qwen3Version().decode() == version[1]
    assert "version=" in lib.qwen3BuildInfo(None).decode()
    for status in Status:
        assert lib.qwen3StatusName(status).decode() == f"QWEN3_STATUS_{status.name}"
    assert lib.qwen3StatusName(77).decode() == "unknown status"


class FakeLibrary:
    """Says what the library would, so that every status can be raised."""

    def qwen3StatusName(self, status: int) -> bytes:
        return f"QWEN3_STATUS_{status}".encode()

    def qwen3LastError(self) -> bytes:
        return b"topp[3] is 7; must be in (0, 1]"


@pytest.mark.parametrize("status", [status for status in Status if status != Status.SUCCESS])
def test_statuses_become_exceptions(status: Status) -> None:
    kinds: dict[type[BaseException], tuple[Status, ...]] = {
        ValueError: (
            Status.BAD_PARAM,
            Status.CONTEXT_OVERFLOW,
            Status.CACHE_MISMATCH,
            Status.BAD_TENSOR_DTYPE,
            Status.BAD_TENSOR_SHAPE,
            Status.BAD_TENSOR_STRIDES,
            Status.BAD_WEIGHTS,
        ),
        MemoryError: (Status.OUT_OF_MEMORY, Status.OUT_OF_KV),
        NotImplementedError: (Status.NOT_IMPLEMENTED, Status.DEVICE_TYPE_NOT_SUPPORTED),
        Qwen3Cancelled: (Status.CANCELLED,),
    }
    with pytest.raises(Qwen3Error) as caught:
        check(FakeLibrary(), status)  # type: ignore[arg-type]
    for kind, statuses in kinds.items():
        assert isinstance(caught.value, kind) == (status in statuses)
    assert caught.value.status == status
    assert caught.value.status_name == f"QWEN3_STATUS_{int(status)}"
    assert caught.value.message == "topp[3] is 7; must be in (0, 1]"
    assert caught.value.message in str(caught.value)


def test_success_raises_nothing() -> None:
    check(FakeLibrary(), Status.SUCCESS)  # type: ignore[arg-type]


def test_names_are_parsed() -> None:
    names = "cpu nvidia cambricon ascend metax moore iluvatar kunlun hygon qy ali".split()
    assert [DeviceType.parse(name) for name in names] == list(DeviceType)
    assert (
        DeviceType.parse("DEVICE_TYPE_ASCEND") == DeviceType.parse(3) == DeviceType.parse("Ascend")
    )
    for bad in ("gpu", "", 11, True, None):
        with pytest.raises(ValueError, match="known devices: cpu, nvidia"):
            DeviceType.parse(bad)  # type: ignore[arg-type]
    assert DataType.parse("torch.bfloat16") == DataType.parse("BF16") == DataType.BF16
    assert DataType.parse(None) == DataType.DEFAULT
    assert DataType.F8_E4M3.stored and DataType.GGUF_Q4_K.stored and not DataType.BF12.stored
    assert not DataType.GGUF_Q4_K.packed and DataType.BF12.packed and not DataType.F32.packed
    for bad in ("int3", 5, True, "u4", "gguf_q4_k", 1012):
        with pytest.raises(ValueError, match="known dtypes"):
            DataType.parse(bad)
    assert Backend.parse("infinicore") == Backend.parse(2)
    with pytest.raises(ValueError, match="unknown backend 'cuda'; known are auto, cpu, infinicore"):
        Backend.parse("cuda")


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=SCRIPTS,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_importing_opens_nothing() -> None:
    code = (
        "import qwen3, infinicore_infer.cli, libinfinicore_infer as b\n"
        "assert not b._libraries\n"
        "assert 'libinfinicore_infer.so' not in open('/proc/self/maps').read()\n"
        "import sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = _run(code, INFINICORE_INFER_LIB="/nowhere/x.so")
    assert (done.returncode, done.stderr) == (0, "")


def test_missing_and_wrong_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINICORE_INFER_LIB", str(tmp_path / "none.so"))
    with pytest.raises(Qwen3LibraryError, match=r"none\.so \(from INFINICORE_INFER_LIB\)"):
        load_library()
    monkeypatch.delenv("INFINICORE_INFER_LIB")
    monkeypatch.setattr(binding, "library_candidates", list)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(Qwen3LibraryError, match="xmake build infinicore_infer"):
        load_library()
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(Qwen3LibraryError, match="cannot load"):
        load_library(text)


def _fake_library(tmp_path: Path, name: str, abi: int, size: int) -> Path:
    functions = [f for f in binding.PROTOTYPES if f not in ("qwen3AbiVersion", "qwen3StructSize")]
    source = [f"void {f}(void) {{}}" for f in functions if f != name]
    source.append(f"unsigned qwen3AbiVersion(void) {{ return {abi}; }}")
    source.append(f"unsigned long qwen3StructSize(int kind) {{ return {size} + kind * 0; }}")
    path = tmp_path / "fake.so"
    (tmp_path / "fake.c").write_text("\n".join(source))
    subprocess.run(
        [_compiler(), "-shared", "-fPIC", str(tmp_path / "fake.c"), "-o", str(path)], check=True
    )
    return path


@pytest.mark.parametrize(
    ("missing", "abi", "size", "words"),
    [
        ("forwardBatch", 1, 88, "no function forwardBatch"),
        ("", 999, 88, "ABI version 999"),
        ("", 1, 3, "Qwen3Meta has 3 bytes"),
    ],
)
def test_libraries_of_another_version(
    missing: str, abi: int, size: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(Qwen3LibraryError, match=words):
        load_library(_fake_library(tmp_path, missing, abi, size))
