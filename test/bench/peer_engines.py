"""vLLM on the CPU and mistral.rs as peers: checkpoints of random weights, as Hugging Face has them.

Both generate, where other runtimes are told the tokens.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any


def checkpoint_folder(order: dict[str, Any]) -> Path:
    """Return the checkpoint that an order to load is about."""
    layers = f"-{order['layers']}" if order.get("layers") else ""
    return Path(order["folder"]) / f"{order['name']}{layers}-checkpoint"


class Vllm:
    """vLLM's engine, alone with one sequence; what a step needs is compiled before.

    Attributes:
        version: vLLM's.
        format: What its weights are.
    """

    def __init__(self, config: dict[str, Any], dtype: str, order: dict[str, Any]) -> None:
        """Load."""
        if dtype != "bf16":
            raise NotImplementedError(f"vLLM is compared in bf16 only, not in {dtype}")
        cpus = sorted(os.sched_getaffinity(0))[: order["threads"]]
        # Left to itself it keeps one CPU free for its server, half of a machine with two.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cpus))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GiB
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm

        self._vllm = vllm
        self.version, self.format = vllm.__version__, "bfloat16"
        self._engine = vllm.LLM(
            str(checkpoint_folder(order)),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=order["context"],
            max_num_seqs=1,
            enable_prefix_caching=False,
        ).llm_engine

    def measure(self, prompt: list[int], generate: int) -> dict[str, float]:
        """Return the seconds until the first token, and of the tokens after it."""
        settings = self._vllm.SamplingParams(
            temperature=0, max_tokens=generate + 1, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        self._engine.add_request("0", {"prompt_token_ids": prompt}, settings)
        first, tokens = 0.0, 0
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                first = first or time.perf_counter()
                tokens = len(output.outputs[0].token_ids)
        assert tokens == generate + 1, f"it generated {tokens} tokens"
        return {"prefill": first - start, "decode": time.perf_counter() - first}


# What it is asked to make of bfloat16 weights as it loads them.
_IN_PLACE = {"bf16": None, "int8": "Q8_0", "int4": "Q4_0"}


class MistralRs:
    """mistral.rs, everything at its defaults; its own clock.

    Attributes:
        version: Of the package.
        format: What it calls the weights.
    """

    def __init__(self, config: dict[str, Any], dtype: str, order: dict[str, Any]) -> None:
        """Load, and quantise where the format asks for it."""
        if dtype not in _IN_PLACE:
            raise NotImplementedError(f"mistral.rs has nothing like {dtype}")
        os.environ["RAYON_NUM_THREADS"] = str(order["threads"])
        from importlib import metadata

        import mistralrs

        self._api = mistralrs
        self.version = metadata.version("mistralrs")
        self.format = _IN_PLACE[dtype] or "bfloat16"
        self._runner = mistralrs.Runner(
            mistralrs.Which.Plain(
                model_id=str(checkpoint_folder(order)),
                arch=mistralrs.Architecture.Qwen3,
                dtype=mistralrs.ModelDType.BF16,
            ),
            max_seqs=1,
            prefix_cache_n=0,
            in_situ_quant=_IN_PLACE[dtype],
        )

    def measure(self, prompt: list[int], generate: int) -> dict[str, float]:
        """Return the seconds of the prompt and of the tokens after it.

        It takes text only: as many digits as the prompt has tokens, each of which is a token.
        """
        digits = random.Random(prompt[0]).choices("0123456789", k=len(prompt))
        request = self._api.CompletionRequest(
            prompt="".join(digits),
            model="default",
            max_tokens=generate + 1,
            temperature=0.0,
            ignore_eos=True,
        )
        usage = self._runner.send_completion_request(request).usage
        counts = usage.prompt_tokens, usage.completion_tokens
        assert counts == (len(prompt), generate + 1), f"it counts {counts} tokens"
        return {"prefill": usage.total_prompt_time_sec, "decode": usage.total_completion_time_sec}
