"""Loads a library with dlopen and runs its fault_main: run_driver.py LIBRARY COMMAND..."""

from __future__ import annotations

import ctypes
import resource
import sys

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
ARGS = [arg.encode() for arg in sys.argv[2:]]
FAILURES = ctypes.CDLL(sys.argv[1]).fault_main(len(ARGS), (ctypes.c_char_p * len(ARGS))(*ARGS))
sys.exit(min(FAILURES, 1))
