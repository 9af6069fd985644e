"""Quality of our weight formats next to llama.cpp's, on one checkpoint and text.

    python test/bench/peer_quality.py --peer VENV/bin/python [--model-path DIR] [--text FILE]

The figures are those of qwen3-quality: each runtime's logits against our own of the checkpoint
as it is. llama.cpp (llama-cpp-python and gguf in the environment of --peer) gets the same weights
as Q8_0 and as Q4_0 with its embedding, which is the head too, in Q8_0: llama-quantize keeps it at 6
to 8 bits as well.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"BF16": None, "Q8_0": None, "Q4_0": "Q8_0"}
OURS = ("bf16:bf16", "int8:int16", "int8:int8", "int4-mixed:int8", "int4:int8")


def chunk_logits(api: Any, context: Any, tokens: list[int], vocabulary: int) -> NDArray[Any]:
    """Return the logits [n, vocabulary] of a chunk that is read from an empty cache."""
    api.llama_memory_clear(api.llama_get_memory(context), True)
    batch = api.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert api.llama_decode(context, batch) == 0, "llama.cpp could not decode"
    rows = [
        np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (vocabulary,)).copy()
        for i in range(len(tokens))
    ]
    api.llama_batch_free(batch)
    return np.stack(rows)


def run_llama(folder: Path) -> None:
    """In the peer's environment: write the GGUF files and each kind's logits."""
    import llama_cpp as api
    from peer_models import write_gguf

    config = json.loads((folder / "config.json").read_text())
    chunks = json.loads((folder / "chunks.json").read_text())
    with np.load(folder / "tensors.npz") as stored:
        tensors = {name: stored[name] for name in stored.files}
    api.llama_backend_init()
    silent = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    for kind, embedding in KINDS.items():
        path = folder / f"{kind}.gguf"
        write_gguf(path, config, kind, tensors=tensors, embedding_kind=embedding)
        model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        assert model, f"llama.cpp could not load {kind}"
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = max(map(len, chunks))
        context = api.llama_init_from_model(model, settings)
        assert context, "llama.cpp could not make a context"
        logits = [chunk_logits(api, context, chunk, config["vocab_size"]) for chunk in chunks]
        np.savez(folder / f"{kind}.npz", *logits)
        api.llama_free(context)
        api.llama_model_free(model)


def compare(args: argparse.Namespace, folder: Path) -> list[Any]:
    """Return a row of figures for each format of ours and each kind of llama.cpp's."""
    from infinicore_infer.checkpoint.checkpoint import Checkpoint
    from infinicore_infer.tools.quality import Accumulator
    from qwen3 import Qwen3ForCausalLM

    with Qwen3ForCausalLM(args.model_path, activations="f32") as model:
        tokens = model.encode(args.text.read_text(encoding="utf-8"))
        starts = range(0, len(tokens) - args.context + 1, args.context)
        chunks = [tokens[start : start + args.context] for start in starts]
        references = [model.forward(chunk) for chunk in chunks]
        sizes = {"checkpoint": model.stats()["weight_bytes"]}
    logits: dict[str, list[NDArray[Any]]] = {}
    for name in OURS:
        dtype, activations = name.split(":")
        with Qwen3ForCausalLM(args.model_path, dtype=dtype, activations=activations) as model:
            logits[name] = [model.forward(chunk) for chunk in chunks]
            sizes[name] = model.stats()["weight_bytes"]

    (folder / "config.json").write_text((args.model_path / "config.json").read_text())
    (folder / "chunks.json").write_text(json.dumps(chunks))
    checkpoint = Checkpoint(args.model_path)
    tensors: dict[str, Any] = {name: weight.decoded() for name, weight in checkpoint.items()}
    np.savez(folder / "tensors.npz", **tensors)
    subprocess.run([args.peer, __file__, "--worker", str(folder)], check=True)
    for kind in KINDS:
        with np.load(folder / f"{kind}.npz") as stored:
            logits[f"llama.cpp {kind}"] = [stored[name] for name in stored.files]
        sizes[f"llama.cpp {kind}"] = (folder / f"{kind}.gguf").stat().st_size

    rows = []
    for name, parts in logits.items():
        total = Accumulator()
        for chunk, reference, part in zip(chunks, references, parts, strict=True):
            first = len(chunk) // 2
            targets = np.asarray(chunk[first + 1 :])
            total.add(reference[first:-1], part[first:-1], targets)
        rows.append(total.result(name, sizes[name]))
    return rows


def main() -> None:
    """Run in either role."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="Python that has llama_cpp and gguf")
    parser.add_argument("--model-path", type=Path, default=ROOT / "test/data/qwen3-tiny")
    parser.add_argument("--text", type=Path, default=ROOT / "test/data/quality.txt")
    parser.add_argument("--context", type=int, default=256, help="tokens per chunk")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        run_llama(args.worker)
        return
    if args.peer is None:
        parser.error("--peer is needed")
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(args, Path(folder))
    print("| format | MB | mean KL divergence | same top token | logit error |\n|" + "---|" * 5)
    for row in rows:
        print(
            f"| {row.dtype} | {row.weight_mb:.2f} | {row.mean_kld:.5f} | {row.same_top:.1%} "
            f"| {row.logit_error:.1%} |"
        )


if __name__ == "__main__":
    main()
