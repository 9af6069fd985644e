"""The program ``qwen3-server``, also ``python -m infinicore_infer.server``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infinicore_infer.paths import CHECKOUT, PROJECT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; return the exit status.

    Without the packages that the server needs, say how to install them.
    """
    try:
        from infinicore_infer.server import launch
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("infinicore_infer", "qwen3"):
            raise
        advice = (
            "bash scripts/setup.sh --with-server"
            if CHECKOUT
            else f"pip install '{PROJECT}[server]'"
        )
        print(f"error: the server needs the package {error.name}: {advice}", file=sys.stderr)
        return 1
    return launch.main(argv)


if __name__ == "__main__":
    sys.exit(main())
