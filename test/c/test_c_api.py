"""The header and the library as a C programmer meets them: compiles, links, runs, exports.

Compiles with the system's compilers; a missing tool skips the tests that need it, aloud.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from libinfinicore_infer import Qwen3LibraryError, load_library

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "include"
HEADER = INCLUDE / "infinicore_infer" / "models" / "qwen3.h"
EXAMPLE = ROOT / "test" / "c" / "example.c"
ERRORS = ROOT / "test" / "cpp" / "test_capi_errors.c"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
C99 = ["-std=c99", *WARNINGS, f"-I{INCLUDE}"]


def tool(*names: str) -> str:
    """Returns the first of the tools that is installed, or skips the test."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"none of {', '.join(names)} is installed")


def run(command: Sequence[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a command; fails the test with all its output if it fails."""
    result = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=600, **options
    )  # type: ignore[call-overload]
    if result.returncode != 0:
        pytest.fail(f"{command}: exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return Path(load_library()._name).resolve()
    except Qwen3LibraryError as error:
        pytest.fail(str(error))


def build(source: Path, library: Path, folder: Path, *flags: str) -> Path:
    """Compiles a C99 program against the library."""
    program = folder / source.stem
    command = [tool("gcc", "cc", "clang"), *C99, *flags, source, "-o", program, library]
    run([*command, f"-Wl,-rpath,{library.parent}", "-lpthread", "-lm"])
    return program


def header_text() -> str:
    return HEADER.read_text()


def documented_functions() -> set[str]:
    """Returns the functions that the header declares."""
    return set(re.findall(r"^QWEN3_API [\w\s*]*?(\w+)\(", header_text(), re.MULTILINE))


def header_example() -> str:
    """Returns the program text in the header's opening comment."""
    opening = header_text().split("*/", 1)[0]
    lines = [line.removeprefix(" *") for line in opening.splitlines()]
    code = [line.removeprefix("     ") if line.startswith("     ") else None for line in lines]
    start = next(i for i, line in enumerate(code) if line and line.startswith("Qwen3Meta"))
    end = start
    while code[end] is not None or not lines[end].strip():
        end += 1
    return "\n".join(line or "" for line in code[start:end]).rstrip() + "\n"


def statements(text: str) -> list[str]:
    """Returns the lines of code, without blank lines and with every run of spaces as one."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


# ---------------------------------------------------------------------- the header


@pytest.mark.parametrize("language", ["c99", "c11", "c++17", "c++20"])
def test_header_stands_alone(language: str, tmp_path: Path) -> None:
    cxx = language.startswith("c++")
    compiler = tool("g++", "c++", "clang++") if cxx else tool("gcc", "cc", "clang")
    source = tmp_path / ("alone.cpp" if cxx else "alone.c")
    source.write_text('#include "infinicore_infer/models/qwen3.h"\nint main(void) { return 0; }\n')
    run([compiler, f"-std={language}", *WARNINGS, f"-I{INCLUDE}", "-fsyntax-only", source])


@pytest.mark.parametrize("language", ["c99", "c++17"])
def test_init_macros_are_free_of_warnings(language: str, tmp_path: Path) -> None:
    cxx = language.startswith("c++")
    compiler = tool("g++", "c++", "clang++") if cxx else tool("gcc", "cc", "clang")
    source = tmp_path / ("init.cpp" if cxx else "init.c")
    source.write_text(
        '#include "infinicore_infer/models/qwen3.h"\n'
        "int main(void) {\n"
        "    Qwen3ModelOptions options = QWEN3_MODEL_OPTIONS_INIT;\n"
        "    Qwen3SamplingParams params = QWEN3_SAMPLING_PARAMS_INIT;\n"
        "    return options.struct_size == 0 || params.top_p != 1.0f;\n"
        "}\n"
    )
    run([compiler, f"-std={language}", *WARNINGS, f"-I{INCLUDE}", "-fsyntax-only", source])


def test_umbrella_header(tmp_path: Path) -> None:
    source = tmp_path / "umbrella.c"
    source.write_text(
        '#include "infinicore_infer.h"\nint main(void) { return QWEN3_STATUS_SUCCESS; }\n'
    )
    run([tool("gcc", "cc", "clang"), *C99, "-fsyntax-only", source])


def test_header_reserves_no_identifiers() -> None:
    """Names with two underscores belong to the compiler."""
    names = set(re.findall(r"\b(?:__\w+|_[A-Z]\w*)", header_text()))
    assert names <= {"__cplusplus", "__declspec", "__GNUC__", "__attribute__", "_WIN32"}


def test_header_example_compiles(tmp_path: Path) -> None:
    """The comment's code, with {...} filled in, in nothing but a main function."""
    code = header_example()
    assert code.count("{...}") == 2
    source = tmp_path / "snippet.c"
    source.write_text(
        '#include "infinicore_infer/models/qwen3.h"\n#include <stdio.h>\n'
        f"int main(void) {{\n{code.replace('{...}', '{0}')}    return 0;\n}}\n"
    )
    run([tool("gcc", "cc", "clang"), *C99, "-fsyntax-only", source])


def test_header_example_is_example_c() -> None:
    """Each line of the comment's code stands in example.c, in that order."""
    program = statements(EXAMPLE.read_text())
    position = 0
    for line in statements(header_example()):
        if "{...}" in line:
            line = line.split("{...}")[0] + "{"
        assert line in program[position:], f"not in example.c, or not in this order: {line}"
        position = program.index(line, position) + 1


# ---------------------------------------------------------------------- the library


def test_example_runs(library: Path, tmp_path: Path) -> None:
    program = build(EXAMPLE, library, tmp_path)
    outputs = [run([program]).stdout for _ in range(2)]
    tokens = [int(line) for line in outputs[0].splitlines()]
    assert len(tokens) == 8
    assert all(token < 100 for token in tokens)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("isa", ["default", "scalar"])
def test_errors(library: Path, tmp_path: Path, isa: str) -> None:
    environment = {**os.environ, **({} if isa == "default" else {"QWEN3_CPU_ISA": isa})}
    program = build(ERRORS, library, tmp_path, "-g", "-O1")
    result = run([program], env=environment)
    assert re.search(r"\d+ checks, 0 failed", result.stdout)
    assert result.stderr == "", "the library must not print"


def test_exports(library: Path) -> None:
    """The dynamic symbols are exactly the documented functions."""
    lines = run([tool("nm"), "-D", "--defined-only", library]).stdout.splitlines()
    exported = {line.split()[-1].split("@")[0] for line in lines if line.split()[-2] != "A"}
    assert documented_functions() == exported


def test_binding_covers_the_header() -> None:
    from libinfinicore_infer import PROTOTYPES

    assert set(PROTOTYPES) == documented_functions()


def test_soname(library: Path) -> None:
    dynamic = run([tool("readelf"), "-d", library]).stdout
    soname = re.search(r"\(SONAME\).*\[(.*)\]", dynamic)
    assert soname, "no SONAME"
    major = re.search(r'#define QWEN3_VERSION_STRING "(\d+)\.', header_text())
    assert major
    assert soname[1] == f"libinfinicore_infer.so.{major[1]}"


def test_needs_only_system_libraries(library: Path) -> None:
    """By name, not by path: the system's libraries, and InfiniCore's if it was built with them."""
    dynamic = run([tool("readelf"), "-d", library]).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    allowed = r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|gomp|infini\w+)\.so.*|ld-linux.*"
    assert all(re.fullmatch(allowed, name) for name in needed), needed
    assert not any("/" in name for name in needed), needed


def test_no_executable_stack(library: Path) -> None:
    headers = run([tool("readelf"), "-lW", library]).stdout
    stack = next((line for line in headers.splitlines() if "GNU_STACK" in line), "")
    assert "RWE" not in stack
