"""Imports and includes point down only: the rule of docs/architecture.md, read off the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from python.helpers import ROOT

SCRIPTS, SRC = ROOT / "scripts", ROOT / "src"
PACKAGE = "infinicore_infer"

# A layer imports itself and the rows above it, nothing beside it and nothing below.
PYTHON_LAYERS = (
    {"libinfinicore_infer", "paths", "errors", "progress"},
    {"text", "checkpoint", "arguments"},
    {"native"},
    {"generate"},
    {"loaded_model"},
    {"causal_lm"},
    {"chat"},
    {"pooling_cli"},
    {"cli", "engine"},
    {"server"},
    {"cluster", "tools"},
    {"doors"},
)
PYTHON_RANKS = {name: rank for rank, row in enumerate(PYTHON_LAYERS) for name in row}
# The protocols do not know each other, and only the routes know them.
PROTOCOLS = ("server.openai", "server.anthropic", "server.ollama")
ROUTES = "server.app"

# What a part of src may include besides itself. "types" and "interface" are files of ops/.
CPP_LAYERS: dict[str, set[str]] = {
    "runtime": set(),
    "types": {"runtime"},
    "interface": {"types", "runtime"},
    "cpu": {"interface", "types", "runtime"},
    "module": {"interface", "types", "runtime"},
    "infinicore": {"module", "interface", "types", "runtime"},
    "factory": {"cpu", "module", "interface", "types", "runtime"},
    "model": {"interface", "types", "runtime"},
    "engine": {"factory", "model", "interface", "types", "runtime"},
    "api": {"engine", "model", "factory", "interface", "types", "runtime"},
}
CPU_PARTS: dict[str, set[str]] = {
    "formats": set(),
    "panel_element": {"formats"},
    "numerics": {"kernels", "formats", "host_buffer"},
    "kernels": {"panel_element", "formats"},
    "host_buffer": set(),
    "pack": {"kernels", "panel_element", "formats", "host_buffer"},
    "kv": {"pack", "kernels", "formats", "host_buffer"},
    "attention": {"kv", "kernels", "formats", "host_buffer"},
    "arithmetic": {"kernels", "formats"},
    "linear": {"arithmetic", "pack", "kernels", "formats", "host_buffer"},
    "experts": {"linear", "pack", "kernels", "formats", "host_buffer"},
    "cpu_backend": {
        "experts",
        "attention",
        "linear",
        "kv",
        "pack",
        "arithmetic",
        "numerics",
        "kernels",
        "formats",
        "host_buffer",
    },
}
# Compiled with flags of an instruction set: an inline function of another header would be, too.
ISA_INCLUDES = re.compile(r"ops/cpu/(formats\.h|kernels/(kernels|simd_\w+)\.h)")


# ---------------------------------------------------------------- Python


def module_name(path: Path, root: Path) -> str:
    """Returns "engine.jobs" for the file of that module in the package, "qwen3" for the door."""
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    return name.removeprefix(f"{PACKAGE}.").removesuffix(".__init__")


def layer_of(module: str) -> str | None:
    """Returns the layer that a module of ours is in."""
    first = module.split(".")[0]
    if first in PYTHON_RANKS:
        return first
    return "doors" if (SCRIPTS / f"{first}.py").is_file() else None


def python_imports(source: str) -> Iterator[str]:
    """Yields the modules of ours that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # "from package.engine import jobs" may name a module or something in one.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(f"{PACKAGE}."):
                yield name.removeprefix(f"{PACKAGE}.")
            elif (SCRIPTS / f"{name.split('.')[0]}.py").is_file():
                yield name


def python_faults(module: str, source: str) -> list[str]:
    """Returns the imports of a module that point up or aside."""
    faults = []
    layer = layer_of(module)
    assert layer is not None, f"{module} is in no row of PYTHON_LAYERS"
    for name in python_imports(source):
        other = layer_of(name)
        assert other is not None, f"{module}: {name} is in no row of PYTHON_LAYERS"
        if other != layer and PYTHON_RANKS[other] >= PYTHON_RANKS[layer]:
            faults.append(f"{module} imports {name}")
        for protocol in PROTOCOLS:
            inside = module.startswith(protocol) or module == ROUTES
            if name.startswith(protocol) and not inside:
                faults.append(f"{module} imports {name}: only {ROUTES} may")
    return faults


def test_python_imports_point_down() -> None:
    faults = []
    for path in sorted(SCRIPTS.rglob("*.py")):
        module = module_name(path, SCRIPTS)
        if module != PACKAGE and module != "__init__":
            faults += python_faults(module, path.read_text("utf-8"))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("generate.sequence", "from infinicore_infer.engine.jobs import Job"),
        ("text.tokenizer", "def f():\n    import infinicore_infer.native.model"),
        ("engine.engine", "from infinicore_infer import server"),
        ("server.answer", "from infinicore_infer.server.openai.chat import x"),
        ("server.anthropic.messages", "from infinicore_infer.server.openai import fields"),
        ("cli", "from infinicore_infer.engine import llm"),
        ("checkpoint.config", "import qwen3"),
    ],
)
def test_python_faults_are_seen(module: str, source: str) -> None:
    assert python_faults(module, source)


def test_nobody_edits_the_import_path() -> None:
    """Programs of .venv find the package by themselves; tests by pytest's setting.

    test_package.py alone tries the doors as programs with scripts/ on their path do.
    """
    edits = re.compile(r"sys\.path\.(insert|append)|sys\.path\s*(\+=|=)")
    found = [
        str(path.relative_to(ROOT))
        for folder in ("scripts", "test", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".sh")
        and path.name not in ("test_layers.py", "test_package.py")
        if edits.search(path.read_text("utf-8"))
    ]
    assert found == []
    assert not edits.search((ROOT / "README.md").read_text("utf-8"))


# ---------------------------------------------------------------- C++


def cpp_layer(path: str) -> str:
    """Returns the layer of a file, given relative to src."""
    parts = path.split("/")
    if parts[0] != "ops":
        return parts[0]
    if len(parts) > 2:
        return parts[1]
    stem = parts[1].split(".")[0]
    return {"types": "types", "half": "types", "factory": "factory"}.get(stem, "interface")


def cpu_part(path: str) -> str:
    """Returns the part of the CPU backend that a file belongs to."""
    stem = path.split("/")[2].split(".")[0]
    first = stem.split("_")[0]
    return first if first in ("attention", "linear") else stem


def includes(source: str) -> list[str]:
    """Returns what a source includes in quotation marks."""
    return re.findall(r'^\s*#\s*include "([^"]+)"', source, re.MULTILINE)


def cpp_faults(path: str, source: str) -> list[str]:
    """Returns the includes of a file of src that point up or aside."""
    faults = []
    layer = cpp_layer(path)
    for name in includes(source):
        if name.startswith("infinicore_infer"):  # the public headers
            continue
        if not (SRC / name).is_file():
            assert name.startswith("infini"), f"{path} includes {name}, which is not there"
            if layer != "infinicore":
                faults.append(f"{path} includes InfiniCore's {name}")
            continue
        other = cpp_layer(name)
        if other != layer and other not in CPP_LAYERS[layer]:
            faults.append(f"{path} includes {name}")
        if layer == other == "cpu":
            part, wanted = cpu_part(path), cpu_part(name)
            if part != wanted and wanted not in CPU_PARTS[part]:
                faults.append(f"{path} includes {name}")
    if "/kernels/isa_" in path:
        allowed = all(ISA_INCLUDES.fullmatch(name) for name in includes(source))
        if not allowed:
            faults.append(f"{path} includes more than kernels.h, formats.h and simd_*.h")
    return faults


def test_includes_point_down() -> None:
    faults = []
    for path in sorted(SRC.rglob("*")):
        if path.suffix in (".h", ".cpp"):
            name = str(path.relative_to(SRC))
            faults += cpp_faults(name, path.read_text("utf-8"))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runtime/ranks.h", "ops/types.h"),
        ("model/qwen3.cpp", "engine/engine.h"),
        ("model/weights.cpp", "ops/cpu/cpu_backend.h"),
        ("api/qwen3_api.cpp", "ops/cpu/cpu_backend.h"),
        ("ops/cpu/cpu_backend.cpp", "ops/factory.h"),
        ("ops/cpu/pack/pack.h", "ops/cpu/cpu_backend.h"),
        ("ops/cpu/kernels/isa_avx2.cpp", "runtime/error.h"),
        ("engine/engine.cpp", "infiniop.h"),
    ],
)
def test_cpp_faults_are_seen(path: str, name: str) -> None:
    assert cpp_faults(path, f'#include "{name}"\n')
