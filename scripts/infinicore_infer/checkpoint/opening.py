"""Opens a model, whatever it is stored as: its configuration and its weights."""

from __future__ import annotations

from pathlib import Path

from libinfinicore_infer import DataType

from infinicore_infer.checkpoint.checkpoint import Checkpoint, refuse_pickle
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.gguf_files import gguf_file
from infinicore_infer.checkpoint.json_files import read_json_object


def is_model(path: Path) -> bool:
    """Return whether a path looks like a model: a folder with a config.json, or a GGUF file."""
    return (path / "config.json").exists() or gguf_file(path) is not None


def open_model(
    path: Path, dtype: DataType | None = None, max_tokens: int | None = None
) -> tuple[Qwen3MetaFromConfig, Checkpoint]:
    """Open a model; nothing of its weights is read yet.

    Args:
        path: A folder with config.json and safetensors files, a GGUF file (of several that belong
            together any one), or a folder with exactly one model in GGUF.
        dtype: As :class:`.Qwen3MetaFromConfig`.
        max_tokens: As :class:`.Qwen3MetaFromConfig`.

    Returns:
        The configuration and the open checkpoint.

    Raises:
        ValueError: Something in it is wrong or not supported; the message says what and where.
        OSError: A file is missing or cannot be opened.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such model folder or file")
    gguf = gguf_file(path)
    if gguf is None:
        if not path.is_dir():
            refuse_pickle(path)
            raise FileNotFoundError(f"{path}: is no model folder, and no .gguf file")
        return Qwen3MetaFromConfig(path, dtype, max_tokens), Checkpoint(path)
    checkpoint = Checkpoint(gguf)
    try:
        config, generation = checkpoint.gguf_config()
        beside = gguf.parent / "generation_config.json"
        if beside.exists():
            generation = read_json_object(beside)
        meta = Qwen3MetaFromConfig(
            config, dtype, max_tokens, generation_config=generation, source=str(gguf)
        )
    except BaseException:
        checkpoint.close()
        raise
    return meta, checkpoint
