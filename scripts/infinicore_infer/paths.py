"""Where the repository lies, if this package runs from a checkout of it."""

from __future__ import annotations

from pathlib import Path

# What has to be on the path of another process that imports this package.
PACKAGES = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGES.parent
# The bundled model, for first steps and tests.
DEMO = CHECKOUT / "test" / "data" / "qwen3-tiny"
