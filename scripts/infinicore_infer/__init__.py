"""Runs Qwen3 text models; :mod:`qwen3` has the names that programs need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        # Looked up when somebody asks: reading a package's metadata takes long.
        if name == "__version__":
            from infinicore_infer.paths import version

            return version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
