"""Files of a checkpoint, JSON and others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infinicore_infer.checkpoint.errors import SafetensorsError


def require_regular(path: Path) -> None:
    """Refuse pipes, devices and folders; reading a pipe or a terminal would wait for ever.

    Raises:
        SafetensorsError: It is there, and no regular file.
    """
    if path.exists() and not path.is_file():
        raise SafetensorsError(f"{path}: is not a regular file")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        SafetensorsError: The file is not valid JSON, or not an object.
        OSError: The file cannot be read.
    """
    require_regular(path)
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SafetensorsError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise SafetensorsError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
