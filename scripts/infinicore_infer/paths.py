"""What this package is called, where it lies, and the repository around it if there is one."""

from __future__ import annotations

import re
from pathlib import Path

# The name that pip knows this package by.
PROJECT = "infinicore-infer-qwen3"
# The folder that has to be on the path of another process that imports this package.
PACKAGES = Path(__file__).resolve().parents[1]


def _checkout() -> Path | None:
    # An installed package lies in site-packages, whose parent has nothing of the repository.
    root = PACKAGES.parent
    return root if PACKAGES.name == "scripts" and (root / "xmake.lua").is_file() else None


# The repository's root; None where the package was installed from a wheel.
CHECKOUT = _checkout()
# The bundled model, for first steps and tests; only the repository has it.
DEMO = CHECKOUT / "test" / "data" / "qwen3-tiny" if CHECKOUT else None


def version() -> str:
    """Return the version of this package, which is the library's: the header states it."""
    if CHECKOUT is None:
        from importlib import metadata

        return metadata.version(PROJECT)
    text = (CHECKOUT / "include/infinicore_infer/models/qwen3.h").read_text("utf-8")
    found = re.search(r'#define QWEN3_VERSION_STRING "([^"]+)"', text)
    assert found, "the header states no version"
    return found[1]
