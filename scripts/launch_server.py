"""Serves a model over HTTP; see ``infinicore_infer/server/launch.py``.

python scripts/launch_server.py --model-path Qwen3-0.6B --port 8000
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from infinicore_infer.server.__main__ import main

if TYPE_CHECKING:
    from infinicore_infer.server.options import build_parser

__all__ = ["build_parser", "main"]


def __getattr__(name: str) -> object:
    # Needs the packages of the server, which main reports when they are missing.
    if name == "build_parser":
        from infinicore_infer.server.options import build_parser

        return build_parser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())
