"""OpenVINO GenAI as a peer: random models through transformers and optimum-intel to its format."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peer_models import random_torch_model

# What optimum-cli is asked for. int4 leaves head and embedding in int8, as ours does.
_FORMATS = {
    "bf16": ["--weight-format", "fp16"],
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--sym", "--group-size", "32", "--ratio", "1.0"],
}

_BITS = {"bf16": 16, "int8": 8, "int4": 4}  # of a weight, at least


def export(folder: Path, config: dict[str, Any], dtype: str) -> None:
    """Write a random model in OpenVINO's format; a folder that exists is left as it is."""
    if folder.exists():
        return
    import transformers

    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        plain, partial = Path(temporary) / "plain", Path(temporary) / "openvino"
        random_torch_model(transformers.Qwen3Config(**config)).save_pretrained(plain)
        command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["-m", str(plain), "--task", "text-generation-with-past"]
        subprocess.run([*command, *_FORMATS[dtype], str(partial)], check=True)
        shutil.move(partial, folder)


def check_whole(folder: Path, config: dict[str, Any], dtype: str) -> None:
    """Refuse an export that keeps equal weights only once: it would be read from cache."""
    d, heads, kv_heads = (
        config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    attention = 2 * (heads + kv_heads) * config["head_dim"] * d
    layer = attention + 3 * config["intermediate_size"] * d
    weights = config["vocab_size"] * d + config["num_hidden_layers"] * layer
    size = (folder / "openvino_model.bin").stat().st_size
    if size < weights * _BITS[dtype] / 8:
        raise RuntimeError(f"{folder} has {size} bytes for {weights} weights: delete it")


class OpenVino:
    """openvino_genai.LLMPipeline, everything at its defaults.

    Attributes:
        version: OpenVINO GenAI's.
        format: What optimum-cli calls the weights.
    """

    def __init__(self, config: dict[str, Any], dtype: str, order: dict[str, Any]) -> None:
        """Export where there is no export yet, and load."""
        if dtype not in _FORMATS:
            raise NotImplementedError(f"OpenVINO has nothing like {dtype}")
        import openvino
        import openvino_genai

        self._tensor, self._genai = openvino.Tensor, openvino_genai
        self.version, self.format = openvino_genai.__version__, _FORMATS[dtype][1]
        path = Path(order["folder"]) / f"{order['name']}-openvino-{self.format}"
        export(path, config, dtype)
        check_whole(path, config, dtype)
        self._pipeline = openvino_genai.LLMPipeline(
            str(path), "CPU", INFERENCE_NUM_THREADS=order["threads"]
        )

    def measure(self, prompt: list[int], generate: int) -> dict[str, float]:
        """Return the seconds until the first token, and of the tokens after it.

        It generates, where other runtimes are told the tokens; the pipeline has no other way in.
        """
        settings = self._genai.GenerationConfig(
            max_new_tokens=generate + 1, ignore_eos=True, do_sample=False
        )
        inputs = self._genai.TokenizedInputs(
            self._tensor(np.array([prompt], np.int64)),
            self._tensor(np.ones((1, len(prompt)), np.int64)),
        )
        start = time.perf_counter()
        result = self._pipeline.generate(inputs, settings)
        end = time.perf_counter()
        assert len(result.tokens[0]) == generate + 1
        first = result.perf_metrics.get_ttft().mean / 1000
        return {"prefill": first, "decode": end - start - first}
