"""Finds the GGUF files of a model: one, or several that belong together."""

from __future__ import annotations

import re
from pathlib import Path

from infinicore_infer.checkpoint.errors import GgufError
from infinicore_infer.checkpoint.gguf import GgufFile
from infinicore_infer.checkpoint.json_files import require_regular

_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def gguf_file(path: Path) -> Path | None:
    """Return the (first) GGUF file that a path means, or ``None`` if it means none.

    That is a file of that name, or the only one in a folder that has no safetensors files.

    Raises:
        GgufError: A folder has several.
        SafetensorsError: It is a pipe or a device.
    """
    if not path.is_dir():
        require_regular(path)
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    found = sorted(path.glob("*.gguf"))
    # A projector for images lies beside some models; the parts of one model count once.
    models = [file for file in found if not file.name.startswith("mmproj")]
    firsts = [file for file in models if (_split_name(file) or ("", 1, 1))[1] == 1]
    if len(firsts) > 1:
        names = ", ".join(file.name for file in firsts[:12])
        raise GgufError(f"{path}: has {len(firsts)} GGUF models; name one of them: {names}")
    if firsts:
        require_regular(firsts[0])
    return firsts[0] if firsts else None


def _split_name(path: Path) -> tuple[str, int, int] | None:
    """Return beginning, number and count if a file's name says that it is a part."""
    match = _SPLIT.fullmatch(path.name)
    return None if match is None else (match["stem"], int(match["number"]), int(match["count"]))


def open_gguf(path: Path) -> list[GgufFile]:
    """Open a GGUF file, and the other parts if it is one of several; the first part comes first.

    Raises:
        GgufError: A file is damaged, or a part is missing or belongs to another set.
        OSError: A file cannot be opened.
    """
    parts, paths = _split_name(path), [path]
    if parts is not None:
        stem, _, count = parts
        paths = [path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
        missing = [part.name for part in paths if not part.is_file()]
        if missing:
            listed = ", ".join(missing[:12])
            raise GgufError(f"{path}: {len(missing)} of {count} parts are missing: {listed}")
    files: list[GgufFile] = []
    try:
        for part in paths:
            files.append(GgufFile(part))
        _check_parts(files)
    except BaseException:
        for file in files:
            file.close()
        raise
    return files


def _check_parts(files: list[GgufFile]) -> None:
    for number, file in enumerate(files):
        count = file.metadata.get("split.count", 0)
        if (count or 1) != len(files):
            raise GgufError(
                f"{file.path}: is one of {count} parts ('split.count'), by its name of {len(files)}"
            )
        if file.metadata.get("split.no", 0) != number:
            raise GgufError(
                f"{file.path}: 'split.no' is {file.metadata.get('split.no')!r}, not {number}"
            )
    names: dict[str, Path] = {}
    for file in files:
        for name in file.weights:
            if name in names:
                raise GgufError(f"tensor {name!r} is in two files: {names[name]} and {file.path}")
            names[name] = file.path
    total = files[0].metadata.get("split.tensors.count")
    if total is not None and len(files) > 1 and total != len(names):
        raise GgufError(
            f"{files[0].path}: 'split.tensors.count' is {total}, but there are {len(names)} in all"
        )
