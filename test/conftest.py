"""Settings of all tests."""

from __future__ import annotations

import os
import tempfile

# Packed weights that tests make do not belong into the user's cache folder. At import, so that it
# also holds for session fixtures and child processes; the object's end deletes the folder.
_CACHE = tempfile.TemporaryDirectory(prefix="infinicore-infer-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
