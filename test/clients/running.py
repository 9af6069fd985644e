"""Runs clients one after the other and says how it went."""

from __future__ import annotations

import importlib.metadata
import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


def _version(package: str) -> str:
    """Return a package's version, of Python or, behind "npm:", of package.json."""
    name = package.removeprefix("npm:")
    if name == package:
        return importlib.metadata.version(package)
    npm: dict[str, str] = json.loads((Path(__file__).parent / "package.json").read_text("utf-8"))[
        "dependencies"
    ]
    return npm[name]


def run_clients(
    clients: Mapping[str, tuple[str, Callable[..., None]]], names: Iterable[str], *urls: str
) -> int:
    """Run clients against servers and print a line for each; return the exit status.

    Args:
        clients: For each name the package and the check, which raises what is wrong.
        names: Those to run; none: all.
        urls: What the checks are given.
    """
    status = 0
    for name in names or clients:
        package, check = clients[name]
        label = f"{name} {_version(package)}"
        try:
            check(*urls)
            print(f"{label}: ok", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"{label}: FAILED", flush=True)
            status = 1
    return status
