"""Measures embeddings of many texts of one length, here and in other libraries.

Example, each in the environment that has the library:
    python test/bench/embeddings.py --model-path DIR
    PEER/bin/python test/bench/embeddings.py --model-path DIR --peer sentence-transformers
    PEER/bin/python test/bench/embeddings.py --model-path FILE.gguf --peer llama.cpp
    PEER/bin/python test/bench/embeddings.py --model-path FILE.onnx --peer onnxruntime --batch 16
    PEER/bin/python test/bench/embeddings.py --model-path FILE.onnx --peer fastembed --batch 16

ONNX Runtime is what computes in fastembed and in text-embeddings-inference's ONNX path;
export_onnx.py writes its files, whose batch and number of tokens are fixed. fastembed wants the
tokenizer's files beside them, with that number of tokens as model_max_length.

Prints one line of JSON: seconds, texts and tokens per second, of the best repetition.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any


def ours(args: argparse.Namespace) -> Callable[[list[str]], Any]:
    """Returns what embeds texts with this library, and says what it computes with."""
    from qwen3 import Qwen3ForCausalLM

    model = Qwen3ForCausalLM(
        args.model_path, task="embed", threads=args.threads, dtype=args.dtype, cache=False
    )
    print(json.dumps(model.build_info()))
    return lambda texts: model.embed(texts)


def sentence_transformers(args: argparse.Namespace) -> Callable[[list[str]], Any]:
    """Returns what embeds texts with sentence-transformers, last token, scaled to length 1."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    torch.set_num_threads(args.threads)
    body = Transformer(args.model_path, model_kwargs={"dtype": getattr(torch, args.dtype)})
    size = body.get_embedding_dimension()
    model = SentenceTransformer(
        modules=[body, Pooling(size, pooling_mode="lasttoken"), Normalize()], device="cpu"
    )
    return lambda texts: model.encode(texts, batch_size=args.batch)


def llama_cpp(args: argparse.Namespace) -> Callable[[list[str]], Any]:
    """Returns what embeds texts with llama.cpp, last token, many texts a call as its server does.

    Tokens are made up: files of random_model.py and peers.py have tokenizers of their own.
    """
    import ctypes

    import llama_cpp as api

    api.llama_backend_init()
    log = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(log, ctypes.c_void_p(0))
    model = api.llama_model_load_from_file(
        args.model_path.encode(), api.llama_model_default_params()
    )
    together = args.batch
    settings = api.llama_context_default_params()
    settings.n_seq_max = together
    settings.n_ctx = settings.n_batch = settings.n_ubatch = together * args.words
    settings.kv_unified = args.unified
    settings.n_threads = settings.n_threads_batch = args.threads
    settings.embeddings, settings.pooling_type = True, api.LLAMA_POOLING_TYPE_LAST
    context = api.llama_init_from_model(model, settings)
    assert context, "llama.cpp could not make a context"
    width, vocabulary = api.llama_model_n_embd(model), 150_000
    batch = api.llama_batch_init(together * args.words, 0, 1)

    def embed(texts: list[str]) -> list[list[float]]:
        states = []
        for first in range(0, len(texts), together):
            count = min(together, len(texts) - first)
            for i in range(count * args.words):
                text, position = divmod(i, args.words)
                batch.token[i] = (7 * i + first) % vocabulary
                batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = position, 1, text
                batch.logits[i] = position == args.words - 1
            batch.n_tokens = count * args.words
            api.llama_memory_clear(api.llama_get_memory(context), True)
            assert api.llama_decode(context, batch) == 0, log
            states += [api.llama_get_embeddings_seq(context, i)[:width] for i in range(count)]
        return states

    return embed


def onnx_runtime(args: argparse.Namespace) -> Callable[[list[str]], Any]:
    """Returns what embeds texts with ONNX Runtime; tokens are made up."""
    import numpy as np
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(
        args.model_path, settings, providers=["CPUExecutionProvider"]
    )
    ids = np.random.default_rng(0).integers(0, 150_000, (args.batch, args.words))

    def embed(texts: list[str]) -> list[Any]:
        calls = -(-len(texts) // args.batch)
        return [session.run(None, {"input_ids": ids})[0] for _ in range(calls)]

    return embed


def fastembed(args: argparse.Namespace) -> Callable[[list[str]], Any]:
    """Returns what embeds texts with fastembed, which cuts them to model_max_length."""
    from pathlib import Path

    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    file = Path(args.model_path)
    TextEmbedding.add_custom_model(
        "exported",
        pooling=PoolingType.DISABLED,  # the file's output is pooled and scaled
        normalization=False,
        sources=ModelSource(hf="none/none"),
        dim=1024,
        model_file=file.name,
    )
    model = TextEmbedding("exported", specific_model_path=str(file.parent), threads=args.threads)

    def embed(texts: list[str]) -> list[Any]:
        # The file's batch is fixed, so the last call is filled up.
        filled = texts + texts[:1] * (-len(texts) % args.batch)
        return list(model.embed(filled, batch_size=args.batch))[: len(texts)]

    return embed


RUNTIMES = {
    "": ours,
    "sentence-transformers": sentence_transformers,
    "llama.cpp": llama_cpp,
    "onnxruntime": onnx_runtime,
    "fastembed": fastembed,
}


def main() -> None:
    """Measures one of them."""
    parser = argparse.ArgumentParser(description="Measure embeddings.", allow_abbrev=False)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--peer", default="", choices=tuple(RUNTIMES))
    parser.add_argument("--dtype", default=None, help="bf16 here, bfloat16 in torch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--words", type=int, default=128, help="tokens of a text, about")
    parser.add_argument("--batch", type=int, default=32, help="texts a call of the peer")
    parser.add_argument("--unified", action="store_true", help="llama.cpp: one cache for all texts")
    parser.add_argument("-r", "--repetitions", type=int, default=1)
    args = parser.parse_args()
    embed = RUNTIMES[args.peer](args)
    # Words of one token each; which ones makes no difference to the time.
    words = ("the", "of", "and", "to", "in", "is", "for", "on", "with", "as")
    texts = [
        " ".join(words[(i * 7 + n) % 10] for n in range(args.words)) for i in range(args.texts)
    ]
    embed(texts[:2])
    times = []
    for _ in range(args.repetitions):
        begin = time.perf_counter()
        embed(texts)
        times.append(time.perf_counter() - begin)
    best = min(times)
    rates = {"texts_per_s": args.texts / best, "tokens_per_s": args.texts * args.words / best}
    print(json.dumps({"peer": args.peer, "dtype": args.dtype, "seconds": best, **rates}))


if __name__ == "__main__":
    main()
