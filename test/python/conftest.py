"""Fixtures of the Python tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from infinicore_infer.text.tokenizer import Qwen3Tokenizer
from python.helpers import DEMO, edit_json, make_text_model, official_tokenizer
from qwen3 import Qwen3ForCausalLM


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with tokenizer and template. Tests must not change it."""
    return make_text_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def shared_model(text_folder: Path) -> Iterator[Qwen3ForCausalLM]:
    """That model, loaded."""
    with Qwen3ForCausalLM(text_folder, threads=2) as model:
        yield model


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without end tokens and with room for minutes of output."""
    folder = make_text_model(tmp_path_factory.mktemp("endless"), dctx=200_000, nlayer=4)
    edit_json(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    return folder


@pytest.fixture
def model(shared_model: Qwen3ForCausalLM) -> Iterator[Qwen3ForCausalLM]:
    """The loaded model; no test may leave a cache behind."""
    yield shared_model
    assert shared_model.stats()["ncaches"] == 0


@pytest.fixture(scope="session")
def official_folder() -> Path:
    """The official Qwen3 tokenizer; tests that need it are skipped where it cannot be had."""
    folder = official_tokenizer()
    if folder is None:
        pytest.skip("the official Qwen3 tokenizer is not here and npm could not fetch it")
    return folder


@pytest.fixture(scope="session")
def small_tokenizer(text_folder: Path) -> Qwen3Tokenizer:
    """The small tokenizer of the random model."""
    return Qwen3Tokenizer(text_folder)


@pytest.fixture(scope="session")
def demo_tokenizer() -> Qwen3Tokenizer:
    """The tokenizer of the demo checkpoint."""
    return Qwen3Tokenizer(DEMO)


@pytest.fixture(scope="session")
def official(official_folder: Path) -> Qwen3Tokenizer:
    """The official tokenizer."""
    return Qwen3Tokenizer(official_folder)
