"""How exactly activations are kept: names, refusals, and what a model says that it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from infinicore_infer.arguments import Precision
from infinicore_infer.paths import DEMO
from infinicore_infer.tools import quality
from libinfinicore_infer import Activations, Qwen3Error
from qwen3 import Qwen3ForCausalLM
from transformers import Qwen3ForCausalLM as Reference


def used(dtype: str, activations: str) -> str:
    """Return what the demo model says that it computes in."""
    with Qwen3ForCausalLM(DEMO, dtype=dtype, activations=activations, cache=False) as model:
        return str(model.native.build_info()["activations"])


def test_what_is_asked_for_is_used() -> None:
    assert used("bf16", "bf16") == "bf16" and used("bf16", "bf16x2") == "bf16x2"
    assert used("int8", "int8") == "int8" and used("int4", "int16") == "int16"
    assert used("bf16", "f32") == "f32" == used("f32", "f32") == used("f32", "auto")
    for codes in ("int16", "int8"):
        assert used("int8", codes) == codes == used("int4", codes)


def test_the_cache_is_kept_as_attention_multiplies_it() -> None:
    """In bf16 with codes of 8 bits wherever it is with bf16 weights, but never with codes of 16."""

    def kept(dtype: str, activations: str = "auto") -> str:
        with Qwen3ForCausalLM(DEMO, dtype=dtype, activations=activations, cache=False) as model:
            return str(model.native.build_info()["kv"])

    assert kept("int8", "int8") == kept("int4") == kept("int4-mixed") == kept("bf16")
    assert kept("int8", "int16") == "f16"


def test_the_first_layers_queries_meet_finer_codes() -> None:
    """With int8 weights; if they met 8 bits, those would cost 2.4 times what 16 bits do."""
    with Qwen3ForCausalLM(DEMO) as model:  # which was trained by this text, but not on it
        text = (DEMO.parent / "train_qwen3_tiny.py").read_text(encoding="utf-8")
        tokens = model.encode(text)[6000:8048]
    chosen = [Precision("int8", activations) for activations in ("int8", "int16")]
    _, eight, sixteen = quality.compare(DEMO, tokens, chosen, 256, 0)
    assert sixteen.mean_kld < eight.mean_kld < 1.9 * sixteen.mean_kld


def test_the_default_is_as_good_as_others() -> None:
    """Wherever it rounds, it moves the output less than transformers does in bfloat16."""
    tokens = list(range(5, 205))
    with torch.no_grad():
        exact, rounded = (
            Reference.from_pretrained(DEMO, dtype=dtype)(torch.tensor([tokens])).logits[0].double()
            for dtype in (torch.float32, torch.bfloat16)
        )
    with Qwen3ForCausalLM(DEMO) as model:
        ours = torch.from_numpy(np.array(model.forward(tokens))).double()

    def divergence(logits: torch.Tensor) -> float:
        p, q = exact.log_softmax(-1), logits.log_softmax(-1)
        return float((p.exp() * (p - q)).sum(-1).mean())

    assert divergence(ours) < divergence(rounded)


@pytest.mark.parametrize(
    ("dtype", "activations"),
    [("f32", "bf16"), ("f16", "bf16x2"), ("bf16", "int8"), ("int8", "f32"), ("int4", "bf16")],
)
def test_what_the_weights_cannot_take(dtype: str, activations: str) -> None:
    """The message says what they can."""
    message = rf"activations is {activations}: weights packed as {dtype} take auto, \w+"
    with pytest.raises(ValueError, match=message):
        used(dtype, activations)


def test_names() -> None:
    assert [Activations.parse(one) for one in ("AUTO", "int16", 3)] == [0, 4, 3]
    for wrong in ("int32", 6, -1, ""):
        with pytest.raises(ValueError, match="known are auto, f32, bf16x2, bf16, int16, int8"):
            Activations.parse(wrong)
    assert str(Precision.parse("int8:int16")) == "int8:int16"
    assert str(Precision.parse("bf16")) == "bf16" == str(Precision.parse("bf16:auto"))


def test_infinicore_has_no_choice() -> None:
    """Its operators compute in the activations' own type."""
    try:
        Qwen3ForCausalLM(DEMO, backend="infinicore").close()
    except (NotImplementedError, OSError, Qwen3Error) as error:
        pytest.skip(f"no InfiniCore here: {error}")
    with pytest.raises(ValueError, match="activations is bf16, which only the cpu backend"):
        Qwen3ForCausalLM(DEMO, backend="infinicore", activations="bf16")
