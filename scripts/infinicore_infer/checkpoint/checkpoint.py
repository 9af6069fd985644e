"""``Checkpoint``: the tensors of a model folder, whatever files they are in."""

from __future__ import annotations

import os
from pathlib import Path

from infinicore_infer.checkpoint.errors import SafetensorsError
from infinicore_infer.checkpoint.json_files import read_json_object
from infinicore_infer.checkpoint.safetensors import SafetensorsFile, Tensor, Tensors

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class Checkpoint(Tensors):
    """All tensors of a model folder: one ``model.safetensors``, or shards named by an index."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open and check every file.

        Args:
            folder: The model's folder, or one ``.safetensors`` file.

        Raises:
            SafetensorsError: A file is damaged, a shard is missing, or shards and index disagree.
            FileNotFoundError: There are no safetensors files.
        """
        self.folder = Path(folder)
        self.files: list[SafetensorsFile] = []
        self._tensors: dict[str, Tensor] = {}
        index_path = self.folder / INDEX_NAME
        try:
            if self.folder.is_file():
                self._add(self.folder)
            elif (self.folder / SINGLE_NAME).is_file():
                self._add(self.folder / SINGLE_NAME)
            elif index_path.is_file():
                self._add_shards(index_path)
            else:
                raise FileNotFoundError(
                    f"{self.folder}: no {SINGLE_NAME} and no {INDEX_NAME} in this folder"
                )
        except BaseException:
            self.close()
            raise

    def _add(self, path: Path) -> SafetensorsFile:
        file = SafetensorsFile(path)
        self.files.append(file)
        for name, tensor in file.items():
            if name in self._tensors:
                raise SafetensorsError(
                    f"tensor {name!r} is in two files: {self._tensors[name].file} and {path}"
                )
            self._tensors[name] = tensor
        return file

    def _add_shards(self, index_path: Path) -> None:
        weight_map = read_json_object(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SafetensorsError(f"{index_path}: has no 'weight_map'")
        shards: dict[str, list[str]] = {}
        for name, shard in weight_map.items():
            # A shard is a file beside the index; anything else could point outside the folder.
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise SafetensorsError(f"{index_path}: tensor {name!r}: bad file name {shard!r}")
            shards.setdefault(shard, []).append(name)
        missing = sorted(shard for shard in shards if not (index_path.parent / shard).is_file())
        if missing:
            raise SafetensorsError(f"{index_path}: missing shards: {', '.join(missing)}")
        for shard, names in sorted(shards.items()):
            file = self._add(index_path.parent / shard)
            lacking = [name for name in names if name not in file]
            if lacking:
                raise SafetensorsError(
                    f"{file.path}: has no tensor {lacking[0]!r}, which {index_path.name} places "
                    f"there ({len(lacking)} such tensors)"
                )
            extra = [name for name in file if name not in weight_map]
            if extra:
                raise SafetensorsError(
                    f"{file.path}: tensor {extra[0]!r} is not in {index_path.name} "
                    f"({len(extra)} such tensors)"
                )

    def identity(self) -> list[list[str | int]]:
        """Return what changes with the content; see :meth:`SafetensorsFile.identity`."""
        return [file.identity() for file in self.files]

    def mappings(self) -> list[tuple[int, int]]:
        """Return address and size in bytes of every mapped file; valid until :meth:`close`."""
        return [file.mapping() for file in self.files]

    def close(self) -> None:
        """Unmap all files."""
        self._tensors = {}
        for file in self.files:
            file.close()
