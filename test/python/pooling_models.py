"""Tiny random models for embeddings and reranking, stored as the published ones are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from python.helpers import edit_json, make_text_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from transformers import AutoModel, Qwen3ForSequenceClassification

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TEXTS = ["the cat sat", "", "hello there, how are you?", "a <|im_end|> b", "你好，世界" * 9, "I"]


def end_texts(folder: Path, *, both: bool = False) -> int:
    """Makes the post-processor add the end of text, as Qwen3-Embedding's does; returns its id."""
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    end = int(tokenizer.token_to_id("<|endoftext|>"))
    before = "<|im_start|> " if both else ""
    tokens = [("<|endoftext|>", end), ("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))]
    level = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    template = processors.TemplateProcessing(
        single=f"{before}$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=tokens
    )
    tokenizer.post_processor = processors.Sequence([level, template])
    tokenizer.save(path)
    return end


def make_embedder(parent: Path, name: str = "qwen3-embedding-tiny", **spec: Any) -> Path:
    """Writes a model with Qwen3-Embedding's names of tensors: no ``model.``, no head."""
    source = make_text_model(parent, f"{name}-source", **{"seed": 71, **spec})
    end_texts(source)
    folder = parent / name
    AutoModel.from_pretrained(source, dtype="auto").save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, folder / file)
    # As published, though only the body is there.
    edit_json(folder / "config.json", architectures=["Qwen3ForCausalLM"])
    return folder


def make_reranker(parent: Path, name: str = "qwen3-reranker-tiny", **spec: Any) -> Path:
    """Writes a model whose vocabulary has the words yes and no."""
    folder = make_text_model(parent, name, **{"seed": 72, "padding": 40, **spec})
    path = str(folder / "tokenizer.json")
    definition = json.loads(Path(path).read_text("utf-8"))
    vocabulary, merges = definition["model"]["vocab"], definition["model"]["merges"]
    pairs = [
        pair for pair in (("y", "e"), ("ye", "s"), ("n", "o")) if "".join(pair) not in vocabulary
    ]
    for pair in pairs:
        vocabulary["".join(pair)] = len(vocabulary)
        merges.append(pair)
    for each in definition["added_tokens"]:  # they follow the vocabulary
        each["id"] += len(pairs)
    Path(path).write_text(json.dumps(definition), "utf-8")
    return folder


def make_seq_cls(reranker: Path, name: str = "judge-seq-cls") -> Path:
    """Writes a reranker as its conversions to sequence classification are: one row of a head."""
    folder = Path(shutil.copytree(reranker, reranker.parent / name))
    tensors = load_file(folder / "model.safetensors")
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    head = tensors.pop("lm_head.weight", tensors["model.embed_tokens.weight"])
    yes, no = (head[words.token_to_id(word)].float() for word in ("yes", "no"))
    tensors["score.weight"] = (yes - no).to(head.dtype)[None]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_json(
        folder / "config.json",
        architectures=["Qwen3ForSequenceClassification"],
        num_labels=1,
        id2label={"0": "LABEL_0"},
        label2id={"LABEL_0": 0},
    )
    return folder


def published_scores(
    folder: Path, query: str, documents: list[str], instruction: str, limit: int = 512
) -> list[float]:
    """Returns scores by the recipe of Qwen3-Reranker's card, in float32, one text at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    before = tokenizer.encode(PREFIX, add_special_tokens=False)
    after = tokenizer.encode(SUFFIX, add_special_tokens=False)
    room = limit - len(before) - len(after)
    scores = []
    for document in documents:
        pair = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        ids = tokenizer(pair, truncation="longest_first", max_length=room)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([before + ids + after])).logits[0, -1]
        pair_logits = torch.stack([logits[no], logits[yes]])
        scores.append(float(torch.nn.functional.log_softmax(pair_logits, dim=0)[1].exp()))
    return scores


def classified(folder: Path, lists: list[list[int]]) -> list[float]:
    """Returns the sigmoid of transformers' sequence classification of token lists."""
    model = Qwen3ForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = 0
    with torch.no_grad():
        return [float(model(torch.tensor([ids])).logits[0, 0].sigmoid()) for ids in lists]


def unit(vector: Any) -> Any:
    """Returns a vector scaled to length 1, in float64."""
    array = np.asarray(vector, np.float64)
    return array / np.sqrt((array**2).sum())
