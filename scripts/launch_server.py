"""Serves a model over HTTP; see ``infinicore_infer/server/launch.py``.

python scripts/launch_server.py --model-path Qwen3-0.6B --port 8000
"""

from __future__ import annotations

import sys

from infinicore_infer.server.launch import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
