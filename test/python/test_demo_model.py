"""The bundled demo models visibly work, and their texts are transformers' texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from qwen3 import Qwen3ForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = Path(__file__).resolve().parents[1] / "data"
DENSE, MIXTURE = "qwen3-tiny", "qwen3-tiny-moe"
ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "What is 2 + 3?": "2 + 3 = 5.",
    "What is 7 + 12?": "7 + 12 = 19.",
    "What is 9 - 4?": "9 - 4 = 5.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What day comes after Monday?": "Tuesday comes after Monday.",
    "Say hello in Chinese.": "In Chinese, hello is 你好.",
    "Show me a cat.": "Here is a cat: 🐱",
    "Who are you?": "I am a tiny Qwen3 model that runs on infinicore_infer.",
}
STORY = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module", params=[DENSE, MIXTURE])
def model(request: pytest.FixtureRequest) -> Iterator[Qwen3ForCausalLM]:
    """A demo model on the CPU backend."""
    with Qwen3ForCausalLM(DATA / request.param, device="cpu") as model:
        yield model


@pytest.mark.parametrize(("name", "limit"), [(DENSE, 8 << 20), (MIXTURE, 4 << 20)])
def test_size_in_git(name: str, limit: int) -> None:
    assert sum(path.stat().st_size for path in (DATA / name).iterdir()) <= limit


@pytest.mark.parametrize("question", ANSWERS)
def test_answers(model: Qwen3ForCausalLM, question: str) -> None:
    """Right, and stopped by the end token rather than by a limit."""
    messages = [{"role": "user", "content": question}]
    result = model.chat(messages, enable_thinking=False, temperature=0)
    assert (str(result), result.finish_reason) == (ANSWERS[question], "stop")


def test_thinking(model: Qwen3ForCausalLM) -> None:
    """With thinking on, the reasoning comes first, between its tags."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = str(model.chat(messages, enable_thinking=True, temperature=0))
    thought, answer = text.removeprefix("<think>").split("</think>")
    assert "Paris" in thought
    assert answer.strip() == "The capital of France is Paris."


def test_two_turns(model: Qwen3ForCausalLM) -> None:
    """The second answer needs the first turn."""
    messages = [{"role": "user", "content": "My name is Anna."}]
    first = str(model.chat(messages, enable_thinking=False, temperature=0))
    assert first == "Nice to meet you, Anna!"
    messages += [
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What is my name?"},
    ]
    second = str(model.chat(messages, enable_thinking=False, temperature=0))
    assert second == "Your name is Anna."


@pytest.mark.parametrize("backend", ["cpu", "infinicore"])
@pytest.mark.parametrize(
    ("name", "dtype"), [(DENSE, "bfloat16"), (DENSE, "float32"), (MIXTURE, "float32")]
)
def test_long_greedy_text_equals_transformers(backend: str, name: str, dtype: str) -> None:
    """200 greedy tokens, with the checkpoint's weights as they are and widened to float32."""
    torch.set_num_threads(1)  # a small model: more threads only wait for each other
    folder = DATA / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        STORY, add_generation_prompt=True, enable_thinking=False, return_tensors="pt"
    )
    ids = inputs if isinstance(inputs, torch.Tensor) else inputs["input_ids"]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    with torch.no_grad():
        output = reference.generate(ids, max_new_tokens=200, min_new_tokens=200, do_sample=False)
    expected = output[0, ids.shape[1] :].tolist()
    assert len(expected) == 200
    short = {"bfloat16": "bf16", "float32": "f32"}[dtype]
    try:
        ours = Qwen3ForCausalLM(folder, backend=backend, dtype=short)
    except NotImplementedError as error:
        if "install_infinicore" not in str(error):
            raise
        pytest.skip(f"the library was built without InfiniCore: {error}")
    with ours:
        prompt = ours.chat_prompt(STORY, enable_thinking=False)
        assert ours.encode(prompt) == ids[0].tolist()
        result = ours.generate(ids[0].tolist(), max_steps=200, temperature=0)
    assert result.tokens == expected
