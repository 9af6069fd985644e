"""Measures embeddings of many texts of one length, here and in sentence-transformers or llama.cpp.

Example, each in the environment that has the library:
    python test/bench/embeddings.py --model-path DIR
    PEER/bin/python test/bench/embeddings.py --model-path DIR --peer sentence-transformers
    PEER/bin/python test/bench/embeddings.py --model-path FILE.gguf --peer llama.cpp

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
    """Returns what embeds texts with llama.cpp, last token."""
    import llama_cpp

    model = llama_cpp.Llama(
        args.model_path,
        embedding=True,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST,
        n_ctx=2048,
        n_batch=2048,
        n_ubatch=2048,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )

    def cut(text: str) -> str:
        # A file made by random_model.py has other tokens, more of them for the same words.
        return str(model.detokenize(model.tokenize(text.encode())[: args.words]).decode())

    return lambda texts: model.embed([cut(text) for text in texts], normalize=True)


RUNTIMES = {"": ours, "sentence-transformers": sentence_transformers, "llama.cpp": llama_cpp}


def main() -> None:
    """Measures one of them."""
    parser = argparse.ArgumentParser(description="Measure embeddings.", allow_abbrev=False)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--peer", default="", choices=tuple(RUNTIMES))
    parser.add_argument("--dtype", default=None, help="bf16 here, bfloat16 in torch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--words", type=int, default=128, help="tokens of a text, about")
    parser.add_argument("--batch", type=int, default=32, help="of sentence-transformers")
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
