"""``Checkpoint``: the weights of a model, whatever files they are in."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from infinicore_infer.checkpoint.converted import converted_weights
from infinicore_infer.checkpoint.errors import GgufError, SafetensorsError
from infinicore_infer.checkpoint.gguf import GgufFile
from infinicore_infer.checkpoint.gguf_blocks import GgufMatrix
from infinicore_infer.checkpoint.gguf_config import config_of, generation_config_of
from infinicore_infer.checkpoint.gguf_files import gguf_file, open_gguf
from infinicore_infer.checkpoint.json_files import read_json_object
from infinicore_infer.checkpoint.parts import some
from infinicore_infer.checkpoint.quantization import quantised_weights
from infinicore_infer.checkpoint.safetensors import SafetensorsFile
from infinicore_infer.checkpoint.tensor import Tensor, Weight

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")

_LOG = logging.getLogger("infinicore_infer.checkpoint")


class Checkpoint(Mapping[str, Weight]):
    """All weights of a model by name.

    They lie in safetensors files (one, or shards with an index or without), where some may be
    quantised as ``quantization_config`` says, or in GGUF files. A quantised matrix is one weight,
    called as the matrix would be, whatever tensors it is stored in.

    Attributes:
        folder: What was opened: the model's folder, or a single file.
        files: The files.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check every file.

        Args:
            path: The model's folder, a ``.safetensors`` file, or a ``.gguf`` file, of several that
                belong together any one.

        Raises:
            SafetensorsError: A file is damaged, a shard is missing, or a tensor is in two files.
            QuantizationError: The checkpoint is quantised in a way that is not supported.
            FileNotFoundError: There are no safetensors or GGUF files.
        """
        self.folder = Path(path)
        self.files: list[SafetensorsFile] | list[GgufFile] = []
        self._weights: dict[str, Weight] = {}
        self._quantization: Mapping[str, Any] | None = None
        try:
            gguf = gguf_file(self.folder)
            if gguf is not None:
                self.folder = gguf
                self.files = open_gguf(gguf)
                for part in self.files:
                    self._weights.update(part.weights)
                self._weights = _split_fused(self._weights, self.files[0].metadata)
            else:
                tensors = self._read_safetensors()
                self._quantization, source = self._read_quantization()
                self._weights = quantised_weights(tensors, self._quantization, source)
                if self._quantization is None:
                    self._weights = converted_weights(self._weights)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Weight:
        """Return one weight."""
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the weights' names."""
        return iter(self._weights)

    def __len__(self) -> int:
        """Return how many weights there are."""
        return len(self._weights)

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """A GGUF file's metadata, from which config and tokenizer come; ``None`` for others."""
        first = self.files[0] if self.files else None
        return first.metadata if isinstance(first, GgufFile) else None

    def gguf_config(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what config.json and generation_config.json would say of a GGUF file.

        Raises:
            GgufError: It is no Qwen3 model, or something is not supported.
        """
        assert self.metadata is not None
        try:
            return config_of(self.metadata, self), generation_config_of(self.metadata)
        except GgufError as error:
            raise GgufError(f"{self.folder}: {error}") from None

    # ------------------------------------------------------------------ safetensors

    def _read_safetensors(self) -> dict[str, Tensor]:
        index_path = self.folder / INDEX_NAME
        if self.folder.is_file() or (self.folder / SINGLE_NAME).is_file():
            single = self.folder if self.folder.is_file() else self.folder / SINGLE_NAME
            refuse_pickle(single)
            return self._add([single])
        if index_path.exists():
            return self._add_shards(index_path)
        paths = self._unlisted()
        if not paths:
            for path in sorted(self.folder.glob("*")):
                refuse_pickle(path)
            raise FileNotFoundError(
                f"{self.folder}: no {SINGLE_NAME} and no {INDEX_NAME} in this folder"
            )
        return self._add(paths)

    def _unlisted(self) -> list[Path]:
        """Return the files of a folder without an index: the only one, or all shards of one model.

        Raises:
            SafetensorsError: It is not clear which, or a shard is missing.
        """
        paths = sorted(self.folder.glob("*.safetensors"))
        names = [path.name for path in paths if path.name != "adapter_model.safetensors"]
        paths = [self.folder / name for name in names]
        if len(paths) == 1 and not _SHARD.fullmatch(names[0]):
            return paths
        shards = [match for name in names if (match := _SHARD.fullmatch(name))]
        sets = {(match[1], match[3]) for match in shards}
        if len(sets) != 1 or len(shards) != len(names):
            if not names:
                return []
            raise SafetensorsError(
                f"{self.folder}: has no {INDEX_NAME}, and it is not clear which of its "
                f"safetensors files are the model: {', '.join(names[:12])}"
            )
        count = int(shards[0][3])
        numbers = {int(match[2]) for match in shards}
        if count != len(shards) or numbers != set(range(1, count + 1)):
            raise SafetensorsError(
                f"{self.folder}: has {len(shards)} of {count} shards, and no {INDEX_NAME}"
            )
        return paths

    def _add(self, paths: list[Path]) -> dict[str, Tensor]:
        """Open files and return their tensors; none may be in two of them."""
        tensors: dict[str, Tensor] = {}
        files: list[SafetensorsFile] = []
        self.files = files
        for path in paths:
            file = SafetensorsFile(path)
            files.append(file)
            for name, tensor in file.items():
                if name in tensors:
                    raise SafetensorsError(
                        f"tensor {name!r} is in two files: {tensors[name].file} and {path}"
                    )
                tensors[name] = tensor
        return tensors

    def _add_shards(self, index_path: Path) -> dict[str, Tensor]:
        weight_map = read_json_object(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SafetensorsError(f"{index_path}: has no 'weight_map'")
        shards: set[str] = set()
        for name, shard in weight_map.items():
            # A shard lies beside the index or in a folder there, and nowhere else.
            path = PurePath(shard) if isinstance(shard, str) else None
            if path is None or path.is_absolute() or not path.parts or ".." in path.parts:
                raise SafetensorsError(f"{index_path}: tensor {name!r}: bad file name {shard!r}")
            shards.add(str(path))
        missing = sorted(shard for shard in shards if not (index_path.parent / shard).exists())
        if missing:
            raise SafetensorsError(f"{index_path}: missing shards: {some(missing)}")
        tensors = self._add([index_path.parent / shard for shard in sorted(shards)])
        # Tools that drop or add tensors forget the index. As in transformers, the shards count;
        # what the model lacks is said when the weights are checked.
        for names, problem in (
            ([name for name in weight_map if name not in tensors], "are in no shard"),
            ([name for name in tensors if name not in weight_map], "are in shards, not in it"),
        ):
            if names:
                _LOG.warning("%s: tensors that %s: %s", index_path, problem, some(names))
        return tensors

    def _read_quantization(self) -> tuple[Mapping[str, Any] | None, str]:
        """Return ``quantization_config``, or ``None``, and where it is."""
        folder = self.folder.parent if self.folder.is_file() else self.folder
        path = folder / "config.json"
        values = read_json_object(path) if path.exists() else {}
        for key in ("quantization_config", "compression_config"):
            if isinstance(values.get(key), dict):
                return values[key], str(path)
            if values.get(key) is not None:
                raise SafetensorsError(f"{path}: {key!r} must be an object")
        # The tools' own files, from before config.json had the section.
        for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
            if (folder / name).exists():
                return {"quant_method": method, **read_json_object(folder / name)}, str(
                    folder / name
                )
        return None, str(path)

    # ------------------------------------------------------------------ the files

    def identity(self) -> list[Any]:
        """Return what changes with the content; see :meth:`SafetensorsFile.identity`."""
        files: list[Any] = [file.identity() for file in self.files]
        if self._quantization is not None:
            # How the bytes are read.
            files.append(json.dumps(self._quantization, sort_keys=True))
        return files

    def mappings(self) -> list[tuple[int, int]]:
        """Return address and size in bytes of every mapped file; valid until :meth:`close`."""
        return [file.mapping() for file in self.files]

    def close(self) -> None:
        """Unmap all files."""
        self._weights = {}
        for file in self.files:
            file.close()


def refuse_pickle(path: Path) -> None:
    """Refuse a file whose reading can run a program.

    Raises:
        SafetensorsError: It is one, by its name.
    """
    if path.suffix in _PICKLES and path.name != "training_args.bin":
        raise SafetensorsError(
            f"{path}: pickled weights are not read, for they can run any program; convert them "
            "with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )


def _split_fused(weights: dict[str, Weight], metadata: Mapping[str, Any]) -> dict[str, Weight]:
    """Return a GGUF file's weights with the rows of each fused attn_qkv as three weights."""
    if not any(".attn_qkv." in name for name in weights):
        return weights
    keys = ("head_count", "head_count_kv", "key_length")
    kind = metadata.get("general.architecture")
    heads, kv_heads, size = (metadata.get(f"{kind}.attention.{key}") for key in keys)
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(size, int)):
        return weights  # what is missing is said when the config is read
    result: dict[str, Weight] = {}
    rows = {"q": heads * size, "k": kv_heads * size, "v": kv_heads * size}
    for name, weight in weights.items():
        if (
            not isinstance(weight, Tensor | GgufMatrix)
            or ".attn_qkv." not in name
            or weight.shape[0] != sum(rows.values())
        ):
            result[name] = weight
            continue
        first = 0
        for part, count in rows.items():
            own = name.replace("attn_qkv", f"attn_{part}")
            result[own] = weight.rows(own, first, first + count)
            first += count
    return result
