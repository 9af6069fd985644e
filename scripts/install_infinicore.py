"""Installs InfiniCore: see ``infinicore_infer/tools/install_infinicore.py``."""

from __future__ import annotations

import sys

from infinicore_infer.tools.install_infinicore import main

if __name__ == "__main__":
    sys.exit(main())
