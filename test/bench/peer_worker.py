"""One runtime in one process: loads a random model, then measures whenever it is told to.

Started by peers.py with the Python of the environment that has the runtime. Reads a line of JSON
per order from standard input and answers with a line on standard output.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from peer_engines import MistralRs, Vllm
from peer_models import MIXTURES, quantise, random_torch_model, write_gguf
from peer_openvino import OpenVino

_KINDS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0", "bf12": "BF16"}


def gguf_file(order: dict[str, Any]) -> Path:
    """Return the GGUF file that an order to load is about."""
    dtype = order["dtype"]
    # Only the files that all runtimes read have a tokenizer.
    model = order["name"] + (f"-{order['layers']}" if order.get("layers") else "")
    name = f"{model}-text-{dtype}" if dtype in MIXTURES else f"{model}-{_KINDS[dtype]}"
    name += f"-head-{order['head']}" if order.get("head") else ""
    return Path(order["folder"]) / f"{name}.gguf"


class Runtime(Protocol):
    """A loaded model with one sequence.

    Attributes:
        version: The runtime's version.
        format: What it calls its weights.
    """

    version: str
    format: str

    def clear(self) -> None:
        """Forget all tokens."""

    def step(self, tokens: list[int]) -> None:
        """Compute more tokens and the last one's logits; return when they are there."""


class Ours:
    """This library."""

    def __init__(self, config: dict[str, Any], dtype: str, order: dict[str, Any]) -> None:
        """Load."""
        from infinicore_infer.arguments import Precision
        from infinicore_infer.native.model import StepRequest, sampling_struct
        from infinicore_infer.tools.bench import Bench

        options = argparse.Namespace(
            threads=order["threads"], kv_limit=2048, device="cpu", layers=order.get("layers")
        )
        name = order["name"]
        if dtype in MIXTURES:
            name, path = str(gguf_file(order)), gguf_file(order)
            assert path.exists(), f"{path} is missing; --peer llama.cpp=... writes it"
        precision = Precision.parse("default" if dtype in MIXTURES else dtype)
        self._model = Bench(name, precision, options, None).model
        self._request = lambda tokens: StepRequest(
            self._cache, tokens, len(self._cache), sampling_struct(no_logprob=1)
        )
        self._cache = self._model.create_kv_cache()
        self.version, self.format = self._model.build_info()["version"], dtype

    def clear(self) -> None:
        """Forget all tokens."""
        self._cache.close()
        self._cache = self._model.create_kv_cache()

    def step(self, tokens: list[int]) -> None:
        """Compute more tokens, and the next one, greedily."""
        self._model.step([self._request(tokens)])


class LlamaCpp:
    """llama.cpp through llama-cpp-python, everything at its defaults."""

    def __init__(self, config: dict[str, Any], dtype: str, order: dict[str, Any]) -> None:
        """Load."""
        import llama_cpp

        self._api = api = llama_cpp
        self.version, self.format = llama_cpp.__version__, _KINDS.get(dtype, dtype)
        path = gguf_file(order)
        api.llama_backend_init()
        self._log = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._log, ctypes.c_void_p(0))
        if dtype in MIXTURES:
            quantise(api, path, config, dtype)
        else:
            write_gguf(path, config, self.format, head_kind=order.get("head"))
        model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        assert model, "llama.cpp could not load the model"
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = order["context"]
        settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = order["threads"]
        self._context = api.llama_init_from_model(model, settings)
        assert self._context, "llama.cpp could not make a context"

    def clear(self) -> None:
        """Forget all tokens."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def step(self, tokens: list[int]) -> None:
        """Compute more tokens and the last one's logits."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = self._api.llama_batch_get_one(ids, len(tokens))
        assert self._api.llama_decode(self._context, batch) == 0
        self._api.llama_synchronize(self._context)


class IkLlamaCpp:
    """ik_llama.cpp through ik-llama-cpp-python, with run-time repacking and flash attention."""

    def __init__(self, config: dict[str, Any], dtype: str, order: dict[str, Any]) -> None:
        """Load."""
        from importlib import metadata

        from ik_llama_cpp import _ctypes_api as api

        try:
            self.version = metadata.version("ik-llama-cpp-python")
        except metadata.PackageNotFoundError:  # built by hand
            self.version = "unknown"
        self._api, self.format = api, _KINDS.get(dtype, dtype) + ", repacked"
        path = gguf_file(order)
        if dtype not in MIXTURES:
            write_gguf(path, config, _KINDS[dtype], head_kind=order.get("head"))
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.use_mmap, params.repack_tensors = False, True
        model = api.llama_model_load_from_file(str(path).encode(), params)
        assert model, "ik_llama.cpp could not load the model"
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = order["context"]
        settings.n_ubatch, settings.flash_attn = 512, True
        settings.n_threads = settings.n_threads_batch = order["threads"]
        self._context = api.llama_init_from_model(model, settings)
        assert self._context, "ik_llama.cpp could not make a context"
        self._batch = api.llama_batch_init(order["context"], 0, 1)
        self._position = 0

    def clear(self) -> None:
        """Forget all tokens."""
        self._api.llama_kv_cache_clear(self._context)
        self._position = 0

    def step(self, tokens: list[int]) -> None:
        """Compute more tokens and the last one's logits."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(tokens) - 1
        assert self._api.llama_decode(self._context, batch) == 0
        self._api.llama_get_logits_ith(self._context, len(tokens) - 1)
        self._position += len(tokens)


class Torch:
    """transformers on torch, bfloat16."""

    def __init__(self, config: dict[str, Any], dtype: str, order: dict[str, Any]) -> None:
        """Build the model of random weights."""
        if dtype != "bf16":
            raise NotImplementedError(f"torch is compared in bf16 only, not in {dtype}")
        import torch
        import transformers

        torch.set_num_threads(order["threads"])
        self.version = f"{torch.__version__}, transformers {transformers.__version__}"
        self.format = "bfloat16"
        settings = transformers.Qwen3Config(**config)
        self._model = random_torch_model(settings)
        self._torch, self._cache_type = torch, transformers.DynamicCache
        self._cache: Any = None

    def clear(self) -> None:
        """Forget all tokens."""
        self._cache = self._cache_type()

    def step(self, tokens: list[int]) -> None:
        """Compute more tokens and the last one's logits."""
        with self._torch.inference_mode():
            self._model(
                self._torch.tensor([tokens]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )


RUNTIMES: dict[str, Any] = {
    "ours": Ours,
    "llama.cpp": LlamaCpp,
    "ik_llama.cpp": IkLlamaCpp,
    "openvino": OpenVino,
    "torch": Torch,
    "vllm": Vllm,
    "mistral.rs": MistralRs,
}
Generating = OpenVino | Vllm | MistralRs


def measure(runtime: Runtime | Generating, order: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of a prefill and of decode steps after it."""
    rng = np.random.default_rng(order["seed"])
    tokens = rng.integers(0, 150_000, order["prompt"] + order["generate"]).tolist()
    if isinstance(runtime, Generating):
        return runtime.measure(tokens[: order["prompt"]], order["generate"])
    runtime.clear()
    start = time.perf_counter()
    runtime.step(tokens[: order["prompt"]])
    middle = time.perf_counter()
    for token in tokens[order["prompt"] :]:
        runtime.step([token])
    return {"prefill": middle - start, "decode": time.perf_counter() - middle}


def main() -> int:
    """Obey until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what native code prints must not disturb the answers
    runtime: Runtime | Generating | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "load":
                start = time.perf_counter()
                runtime = RUNTIMES[order["runtime"]](order["config"], order["dtype"], order)
                answer: dict[str, Any] = {"version": runtime.version, "format": runtime.format}
                answer["load"] = time.perf_counter() - start
            else:
                assert runtime is not None, "nothing is loaded"
                answer = dict(measure(runtime, order))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
