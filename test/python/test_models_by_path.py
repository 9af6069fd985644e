"""Programs take a GGUF file where they take a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from infinicore_infer.checkpoint.opening import is_model
from infinicore_infer.generate.grammar import Grammar, Grammars
from infinicore_infer.generate.stream import run_sequences
from python.helpers import DEMO, SCRIPTS
from qwen3 import Qwen3ForCausalLM
from reference.gguf_files import q4_k_m, write_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a file."""
    path = tmp_path_factory.mktemp("gguf") / "demo.gguf"
    write_gguf(DEMO, path, q4_k_m)
    return path


def test_command_line(path: Path) -> None:
    options = ["--prompt", "What is the capital of Japan?", "--no-think", "--temperature", "0"]
    for where in (path, path.parent):
        run = subprocess.run(
            [sys.executable, SCRIPTS / "qwen3.py", "--model-path", where, *options, "--json"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["text"] == "The capital of Japan is Tokyo."


@pytest.mark.parametrize("settings", [{"ndev": 2}, {"dtype": "int8"}, {"backend": "infinicore"}])
def test_ranks_formats_and_backends(settings: dict[str, object], path: Path) -> None:
    try:
        model = Qwen3ForCausalLM(path, cache=False, **settings)  # type: ignore[arg-type]
    except NotImplementedError as error:
        if "install_infinicore" not in str(error):
            raise
        pytest.skip(f"the library was built without InfiniCore: {error}")
    with model:
        messages = [{"role": "user", "content": "What is the capital of Japan?"}]
        answer = model.chat(messages, enable_thinking=False, temperature=0)
        assert str(answer) == "The capital of Japan is Tokyo."


def test_what_is_a_model(path: Path, tmp_path: Path) -> None:
    assert is_model(DEMO) and is_model(path) and is_model(path.parent)
    assert not is_model(tmp_path) and not is_model(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no such model folder or file"):
        Qwen3ForCausalLM(tmp_path / "absent.gguf")
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no model folder, and no \.gguf file"):
        Qwen3ForCausalLM(tmp_path / "model.txt")


def test_grammars(path: Path) -> None:
    """They read the rebuilt tokenizer as they read tokenizer.json."""
    with Qwen3ForCausalLM(path) as model:
        grammars = Grammars()
        grammars.attach(model)
        make = grammars.factory(
            Grammar('start: "Tokyo" | "Paris"', "guided_grammar"), may_think=False, thinking=False
        )
        prompt = model.chat_prompt([{"role": "user", "content": "What is 2 + 3?"}])
        params = model.sampling_params(temperature=0, max_steps=20)
        sequence = model.new_sequence(model.encode(prompt), params, constraint=make())
        for _ in run_sequences(model.native, [sequence], max_batch=1, cancel=None):
            pass
        assert sequence.result.text in ("Tokyo", "Paris")
