"""``model.embed`` against transformers: ends of texts, pooling, cutting, forms of checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from infinicore_infer.generate.embedder import Truncation
from infinicore_infer.generate.pooling import PooledText, pool, pool_step
from libinfinicore_infer import Qwen3OutOfKVError, WeightCache
from python.helpers import DEMO, copy_folder, edit_json, make_text_model
from python.pooling_models import TEXTS, end_texts, make_embedder, unit
from qwen3 import Qwen3ForCausalLM
from reference.gguf_files import set_key, write_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

# Of vectors of length 1, computed in float32 on both sides.
EXACT = 2e-6
EXACTLY = {"dtype": "f32", "cache": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedder(tmp_path_factory.mktemp("embedders"), tied=False)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Qwen3ForCausalLM]:
    with Qwen3ForCausalLM(folder, **EXACTLY) as model:
        yield model


def reference(folder: Path, texts: list[str]) -> Any:
    """Returns transformers' states of the last tokens, float32 [texts, d]."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    body = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
        return np.stack([body(each).last_hidden_state[0, -1].numpy() for each in ids])


def test_vectors_are_transformers(model: Qwen3ForCausalLM, folder: Path) -> None:
    assert model.task == "embed"
    expected = reference(folder, TEXTS)
    vectors = model.embed(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 64)
    for vector, state in zip(vectors, expected, strict=True):
        assert np.abs(vector - unit(state)).max() < EXACT
    raw = model.embed(TEXTS, normalize=False)
    assert np.abs(raw - expected).max() < 2e-5 * expected.std()
    # Cut first, then scaled.
    for vector, state in zip(model.embed(TEXTS, dimensions=10), expected, strict=True):
        assert np.abs(vector - unit(state[:10])).max() < EXACT


def test_queries(model: Qwen3ForCausalLM, folder: Path) -> None:
    task = "Given a web search query, retrieve relevant passages that answer the query"
    (expected,) = reference(folder, [f"Instruct: {task}\nQuery:the cat"])
    assert np.abs(model.embed("the cat", instruction=task) - unit(expected)).max() < EXACT


def test_alone_and_in_any_batch(model: Qwen3ForCausalLM) -> None:
    rng = np.random.default_rng(5)
    lists = [rng.integers(0, 300, n).tolist() for n in (1, 300, 2, 90, 511, 17, 1, 64)]
    expected = [model.embed([tokens])[0] for tokens in lists]
    assert np.array_equal(model.embed(lists), expected)
    assert np.array_equal(model.embed(lists[::-1])[::-1], expected)
    texts = [PooledText(tokens) for tokens in lists]
    left = list(texts)
    while left:  # in steps of a few tokens, and so in pieces
        pool_step(model.native, left, 13)
        left = [text for text in left if not text.finished]
    states = [text.state for text in texts if text.state is not None]
    assert np.array_equal([model.embedder.vector(state) for state in states], expected)
    assert model.stats()["ncaches"] == 0


def test_kv_memory_for_one_text(folder: Path) -> None:
    """Texts that do not fit together take turns; one that never fits is an error."""
    with Qwen3ForCausalLM(folder, **EXACTLY, threads=1) as model:
        lists = [[i % 300 for i in range(n)] for n in (100, 60, 7, 110, 100, 128)]
        expected = model.embed(lists)
        block = model.stats()["kv_block_bytes"]
    with Qwen3ForCausalLM(folder, **EXACTLY, kv_limit_bytes=8 * block) as model:
        assert model.stats()["kv_block_tokens"] == 16
        assert np.array_equal(model.embed(lists), expected)
        beginning = PooledText(lists[1])
        texts = [PooledText([*lists[1], *more], beginning) for more in ([1], [2], [3, 4])]
        states = pool(model.native, texts)
        whole = pool(model.native, [PooledText([*lists[1], 2])])
        assert np.array_equal(states[1], whole[0])
        with pytest.raises(Qwen3OutOfKVError, match="kv_limit_bytes"):
            model.embed([lists[0], [1] * 129])
        assert model.stats()["ncaches"] == 0
        assert np.array_equal(model.embed(lists), expected)


def test_turns_without_memory_for_two(folder: Path) -> None:
    """Whoever comes first in a step changes; a text that has begun ends all the same."""
    lists = [[i % 300 for i in range(n)] for n in (100, 90, 120)]
    with Qwen3ForCausalLM(folder, **EXACTLY) as model:
        expected = model.embed(lists, normalize=False)
        block = model.stats()["kv_block_bytes"]
    with Qwen3ForCausalLM(folder, **EXACTLY, kv_limit_bytes=8 * block) as model:
        texts = [PooledText(tokens) for tokens in lists]
        left = list(texts)
        for _ in range(60):
            pool_step(model.native, left, 32)
            left = [text for text in left[1:] + left[:1] if not text.finished]
        assert not left
        assert np.array_equal([text.state for text in texts], expected)
        assert model.stats()["ncaches"] == 0


def test_what_is_refused(model: Qwen3ForCausalLM, folder: Path) -> None:
    for texts, settings, words in (
        (["a", ""], {}, None),  # the end of text alone
        ([[]], {}, r"input\[0\].*at least one"),
        ([[1], [9999]], {}, r"input\[1\].*9999"),
        (["a b " * 600], {}, r"input\[0\] has \d+ tokens, and at most 512 fit"),
        (["a"], {"dimensions": 0}, "dimensions: must be from 1 to this model's 64, got 0"),
        (["a"], {"dimensions": 65}, "dimensions: must be from 1 to this model's 64, got 65"),
        ([[1, 2]], {"instruction": "x"}, "instruction needs texts"),
        (["\ud800"], {}, "not valid Unicode"),
    ):
        if words is None:
            model.embed(texts, **settings)  # type: ignore[arg-type]
            continue
        with pytest.raises(ValueError, match=words):
            model.embed(texts, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"without the head.*task 'chat'"):
        model.generate("Hello", max_steps=1)
    with pytest.raises(ValueError, match=r"task 'rerank'"):
        model.rerank("a", ["b"])
    with pytest.raises(ValueError, match=r"lm_head.*missing.*--task embed"):
        Qwen3ForCausalLM(folder, **EXACTLY, task="chat")
    with pytest.raises(ValueError, match=r"task must be one of auto, chat, embed, rerank"):
        Qwen3ForCausalLM(folder, task="embeddings")
    assert model.embed([]).shape == (0, 64)


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation(folder: Path, tmp_path: Path, side: Any) -> None:
    """What the post-processor adds stays, as in transformers."""
    both = copy_folder(folder, tmp_path)
    end_texts(both, both=True)
    tokenizer = AutoTokenizer.from_pretrained(both, truncation_side=side)
    with Qwen3ForCausalLM(both, **EXACTLY) as model:
        for text in (*TEXTS, "hello there " * 300):
            for limit in (1, 2, 3, 9, 512):
                (tokens,) = model.embedder.tokens([text], Truncation(limit, side))
                if limit > 2:
                    found = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
                    assert tokens == found
                assert len(tokens) <= limit
        assert model.embed(["hello there " * 300], truncate=True).shape == (1, 64)
        (plain,) = model.embedder.tokens(["the cat"], add_special=False)
        assert plain == tokenizer("the cat", add_special_tokens=False)["input_ids"]


def test_files_of_before_the_end_token(tmp_path: Path) -> None:
    """Old files leave the end of text to the caller; only those of Qwen3-Embedding get it."""
    folder = make_embedder(tmp_path)
    new = Qwen3ForCausalLM(folder, **EXACTLY).embed(TEXTS)
    shutil.copy(tmp_path / "qwen3-embedding-tiny-source" / "tokenizer.json", folder)
    definition = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    definition["post_processor"] = definition["post_processor"]["processors"][0]
    (folder / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    assert np.array_equal(Qwen3ForCausalLM(folder, **EXACTLY).embed(TEXTS), new)
    other = folder.rename(tmp_path / "another")
    (found,) = Qwen3ForCausalLM(other, **EXACTLY, task="embed").embedder.tokens(["the cat"])
    assert found == AutoTokenizer.from_pretrained(other)("the cat")["input_ids"]


def test_any_model_embeds(tmp_path: Path) -> None:
    """A chat model's states too, and a head of its own changes nothing."""
    folder = make_text_model(tmp_path, tied=False, seed=73)
    expected = reference(folder, ["the cat"])
    with Qwen3ForCausalLM(folder, **EXACTLY) as model:
        assert model.task == "chat"
        vector = model.embed("the cat")
        assert np.abs(vector - unit(expected[0])).max() < EXACT
        logits = model.forward([1, 2, 3])
    with Qwen3ForCausalLM(folder, **EXACTLY, task="embed") as model:
        assert np.array_equal(model.embed("the cat"), vector)
    with Qwen3ForCausalLM(folder, **EXACTLY, task="chat") as model:
        assert np.array_equal(model.forward([1, 2, 3]), logits)


def test_packed_weights_with_and_without_head(tmp_path: Path) -> None:
    """Each has a file of its own: changing back and forth packs nothing."""
    folder = make_text_model(tmp_path, tied=False, seed=74)
    states = []
    for task in ("chat", "embed", "chat", "embed"):
        with Qwen3ForCausalLM(folder, dtype="int8", cache_dir=tmp_path / "c", task=task) as model:
            states.append(model.stats()["weight_cache"])
    assert states[2:] == [WeightCache.LOADED] * 2 and WeightCache.LOADED not in states[:2]


def test_what_a_checkpoint_is_for(folder: Path, tmp_path: Path) -> None:
    copy = copy_folder(folder, tmp_path, "x")
    edit_json(copy / "config.json", tie_word_embeddings=True)

    def task() -> str:
        with Qwen3ForCausalLM(copy, **EXACTLY) as model:
            return str(model.task)

    assert task() == "chat"
    (copy / "README.md").write_text("---\ntags: x\n---\n# Qwen3-Embedding-0.6B\n", "utf-8")
    assert task() == "embed"
    (copy / "README.md").write_text("# Qwen3-0.6B\nSee also Qwen3-Embedding.\n", "utf-8")
    assert task() == "chat"
    edit_json(copy / "config.json", architectures=["Qwen3Model"])
    assert task() == "embed"
    edit_json(copy / "config.json", architectures=["Qwen3ForCausalLM"])
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(
            [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        )
    ]
    (copy / "modules.json").write_text(json.dumps(modules), "utf-8")
    (copy / "1_Pooling").mkdir()
    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false}')
    assert task() == "embed"
    pooling.write_text('{"pooling_mode_lasttoken": false, "pooling_mode_mean_tokens": true}')
    with pytest.raises(ValueError, match=r"1_Pooling.*'mean_tokens'.*only 'lasttoken'"):
        task()
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (copy / "modules.json").write_text(json.dumps(modules), "utf-8")
    pooling.write_text('{"pooling_mode": "lasttoken"}')
    with pytest.raises(ValueError, match=r"modules\.json.*'Dense' is not supported"):
        task()
    (copy / "modules.json").write_text("[3]", "utf-8")
    with pytest.raises(ValueError, match=r"modules\.json.*no list of modules"):
        task()
    guard = r"Qwen3Guard-Stream.*not supported; Qwen3Guard-Gen"
    edit_json(copy / "config.json", architectures=["Qwen3ForGuardModel"])
    for given in ("auto", "chat"):
        with pytest.raises(ValueError, match=guard):
            Qwen3ForCausalLM(copy, task=given)
    edit_json(copy / "config.json", architectures=["Qwen3Model"])
    tensors = load_file(copy / "model.safetensors")
    tensors["risk_level_head.weight"] = tensors["norm.weight"][None].repeat(3, 1)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match=guard):
        task()


def test_gguf(tmp_path: Path) -> None:
    """The kind of pooling and the end of text are in the file; of some files in its name."""
    end = set_key("tokenizer.ggml.add_eos_token", True)
    eos = set_key("tokenizer.ggml.eos_token_id", 2000)

    def add(*changes: Any) -> Any:
        def change(writer: Any) -> None:
            for each in (*changes, eos):
                each(writer)

        return change

    path = tmp_path / "m.gguf"
    write_gguf(DEMO, path, Type.F32, change=add(set_key("qwen3.pooling_type", 3), end))
    ended = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    end_texts(ended)
    with Qwen3ForCausalLM(ended, **EXACTLY, task="embed") as model:
        assert model.tokenizer.token_id("<|endoftext|>") == 2000
        expected, tokens = model.embed(TEXTS), model.embedder.tokens(TEXTS)
    with Qwen3ForCausalLM(path, **EXACTLY) as model:
        assert model.task == "embed"
        assert model.embedder.tokens(TEXTS) == tokens
        assert np.abs(model.embed(TEXTS) - expected).max() < EXACT
    named = tmp_path / "Qwen3-Embedding-tiny.gguf"
    write_gguf(DEMO, named, Type.F32, change=add())
    with Qwen3ForCausalLM(named, **EXACTLY) as model:
        assert model.task == "embed" and model.embedder.tokens(TEXTS) == tokens
    write_gguf(DEMO, path, Type.F32, change=add(set_key("qwen3.pooling_type", 1)))
    with pytest.raises(ValueError, match="pooling 'mean' is not supported"):
        Qwen3ForCausalLM(path, **EXACTLY)
    bad = set_key("tokenizer.ggml.eos_token_id", 10**6)
    write_gguf(DEMO, path, Type.F32, change=lambda writer: (end(writer), bad(writer)))
    with pytest.raises(ValueError, match=r"add_eos_token' is true, and .* is 1000000"):
        Qwen3ForCausalLM(path, **EXACTLY, task="embed")
