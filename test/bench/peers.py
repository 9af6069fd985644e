"""Runs llama.cpp (llama-cpp-python) and this library interleaved on the same random model.

    pip install llama-cpp-python==0.3.36 gguf==0.19.0      # in the environment that runs this
    python test/bench/peers.py --model 0.6b -p 512 -n 32 -r 3 [--json out.json]

Formats compared: bf16 with BF16, int8 with Q8_0, int4 with Q4_0, and bf12 with BF16. Every
repetition runs ours, then theirs, so both see the same machine. Models of random weights: speed
depends on shapes only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from bench import SHAPES, Bench, cpu_name, measure_machine, official_config  # noqa: E402
from libinfinicore_infer import DataType  # noqa: E402

PEER_FORMATS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0", "bf12": "BF16"}


def write_gguf(path: Path, name: str, kind: str) -> None:
    """Write a random model of an official shape; no vocabulary, ids go in and out."""
    config = official_config(name)
    hidden, layers, heads, kv_heads, inner, tied = SHAPES[name]
    dim, vocabulary = config["head_dim"], config["vocab_size"]
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("none")
    quantization = gguf.GGMLQuantizationType[kind]
    pattern = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)

    def matrix(tensor: str, rows: int, columns: int) -> None:
        values = np.resize(pattern, rows * columns).reshape(rows, columns)
        data = gguf.quants.quantize(values, quantization)
        writer.add_tensor(tensor, data, raw_dtype=quantization)

    def ones(tensor: str, size: int) -> None:
        writer.add_tensor(tensor, np.ones(size, np.float32))

    matrix("token_embd.weight", vocabulary, hidden)
    if not tied:
        matrix("output.weight", vocabulary, hidden)
    ones("output_norm.weight", hidden)
    for i in range(layers):
        p = f"blk.{i}."
        ones(p + "attn_norm.weight", hidden)
        ones(p + "ffn_norm.weight", hidden)
        ones(p + "attn_q_norm.weight", dim)
        ones(p + "attn_k_norm.weight", dim)
        matrix(p + "attn_q.weight", heads * dim, hidden)
        matrix(p + "attn_k.weight", kv_heads * dim, hidden)
        matrix(p + "attn_v.weight", kv_heads * dim, hidden)
        matrix(p + "attn_output.weight", hidden, heads * dim)
        matrix(p + "ffn_gate.weight", inner, hidden)
        matrix(p + "ffn_up.weight", inner, hidden)
        matrix(p + "ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """One model and context of llama.cpp, through its C API."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load, with run-time repacking and flash attention left at their defaults."""
        llama_cpp.llama_backend_init()
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, "llama.cpp could not load the model"
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, context, 512
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        assert self._context, "llama.cpp could not make a context"
        self._rng = np.random.default_rng(1)

    def clear(self) -> None:
        """Forget all tokens."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def step(self, count: int) -> None:
        """Compute `count` more tokens and the last one's logits."""
        tokens = (ctypes.c_int32 * count)(*self._rng.integers(0, 150000, count).tolist())
        batch = llama_cpp.llama_batch_get_one(tokens, count)
        assert llama_cpp.llama_decode(self._context, batch) == 0
        llama_cpp.llama_synchronize(self._context)

    def close(self) -> None:
        """Free everything."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def timed(action: Callable[[], None]) -> float:
    """Return how long an action takes, in seconds."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(
    name: str, dtype: str, args: argparse.Namespace, machine: dict[str, Any]
) -> dict[str, Any]:
    """Measure one format of both; medians of interleaved repetitions."""
    ours = Bench(name, DataType.parse(dtype), args, machine)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, name, PEER_FORMATS[dtype])
        theirs = LlamaCpp(path, args.threads, args.prompt + args.generate + 8)
        times: dict[str, list[float]] = {"our_pp": [], "our_tg": [], "peer_pp": [], "peer_tg": []}
        for repeat in range(args.repeat + 1):
            cache = ours.model.create_kv_cache()
            prefill = timed(lambda cache=cache: ours.step([cache], args.prompt))  # type: ignore[misc]
            decode = timed(
                lambda cache=cache: [ours.step([cache], 1) for _ in range(args.generate)]  # type: ignore[misc]
            )
            cache.close()
            theirs.clear()
            peer_prefill = timed(lambda: theirs.step(args.prompt))
            peer_decode = timed(lambda: [theirs.step(1) for _ in range(args.generate)])  # type: ignore[func-returns-value]
            if repeat:  # the first warms up
                for key, value in zip(
                    times, (prefill, decode, peer_prefill, peer_decode), strict=True
                ):
                    times[key].append(value)
        theirs.close()
    ours.model.close()
    median = {key: float(np.median(values)) for key, values in times.items()}
    return {
        "model": name,
        "ours": dtype,
        "llama.cpp": PEER_FORMATS[dtype],
        "prefill": args.prompt / median["our_pp"],
        "peer prefill": args.prompt / median["peer_pp"],
        "prefill ratio": median["peer_pp"] / median["our_pp"],
        "decode": args.generate / median["our_tg"],
        "peer decode": args.generate / median["peer_tg"],
        "decode ratio": median["peer_tg"] / median["our_tg"],
    }


def main() -> int:
    """Run the comparison and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=["0.6b"])
    parser.add_argument("--dtype", nargs="+", choices=PEER_FORMATS, default=list(PEER_FORMATS))
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--generate", type=int, default=32)
    parser.add_argument("-r", "--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    args.kv_limit, args.device = 4096, "cpu"
    machine = measure_machine(args.threads)
    rows = [compare(name, dtype, args, machine) for name in args.model for dtype in args.dtype]
    print(f"{cpu_name()}, {args.threads} threads, tok/s; prompt {args.prompt}, decode after it\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        print("| " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps({"cpu": cpu_name(), "machine": machine, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
