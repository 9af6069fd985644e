"""Files of llama.cpp's own converter and quantiser: its logits and ours, of the same file.

    PYTHONPATH=test python test/bench/peer_gguf.py --peer VENV/bin/python \\
        --converter llama.cpp/convert_hf_to_gguf.py

A random model with Qwen3's tokenizer is converted and quantised to each type. The reference is a
float64 forward pass of the weights as the gguf package decodes them; errors are in standard
deviations of its logits. llama-cpp-python (in the environment of --peer) and its source, where the
converter is, are the ones of test/bench/peers.py; the tokenizer is fetched as the tests fetch it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from peer_models import MIXTURES
from peer_quality import chunk_logits

ROOT = Path(__file__).resolve().parents[2]
TEXT = (
    "The quick brown fox — naïve café — 天地玄黄，宇宙. 12345 + 67 = ?\n\n  def f(x):\n\treturn x"
)


def run_llama(folder: Path) -> None:
    """In the peer's environment: quantise the converted file, and compute each kind's logits."""
    import llama_cpp as api

    api.llama_backend_init()
    silent = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    for kind, number in MIXTURES.items():
        path = folder / f"{kind}.gguf"
        params = api.llama_model_quantize_default_params()
        params.ftype = number
        source = str(folder / "F32.gguf").encode()
        assert api.llama_model_quantize(source, str(path).encode(), ctypes.byref(params)) == 0
    for kind in ("F32", *MIXTURES):
        path = str(folder / f"{kind}.gguf").encode()
        model = api.llama_model_load_from_file(path, api.llama_model_default_params())
        assert model, f"llama.cpp could not load {kind}"
        vocabulary = api.llama_model_get_vocab(model)
        ids = (ctypes.c_int32 * 512)()
        data = TEXT.encode()
        count = api.llama_tokenize(vocabulary, data, len(data), ids, 512, False, True)
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = 512
        context = api.llama_init_from_model(model, settings)
        assert context, "llama.cpp could not make a context"
        tokens = list(ids[:count])
        logits = chunk_logits(api, context, tokens, api.llama_vocab_n_tokens(vocabulary))
        np.savez(folder / f"{kind}.npz", tokens=tokens, logits=logits)
        api.llama_free(context)
        api.llama_model_free(model)


def make_model(folder: Path) -> None:
    """Writes a random model, whose rows K-quants can store, with the official tokenizer."""
    from python.helpers import official_tokenizer
    from reference.random_checkpoint import CheckpointSpec, make_checkpoint

    spec = CheckpointSpec(
        "model", nlayer=8, d=256, nh=4, nkvh=2, dh=128, di=512, dvoc=151936, theta=1e6, dctx=4096
    )
    made = make_checkpoint(spec, folder)
    tokenizer = official_tokenizer()
    assert tokenizer is not None, "the tokenizer could not be fetched"
    for file in tokenizer.glob("*.json"):
        shutil.copy(file, made)
    template = ROOT / "test" / "data" / "chat_template.jinja"
    settings = json.loads((made / "tokenizer_config.json").read_text("utf-8"))
    settings["chat_template"] = template.read_text("utf-8")
    (made / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    config = json.loads((made / "config.json").read_text("utf-8"))
    config |= {"eos_token_id": 151645, "bos_token_id": 151643}
    (made / "config.json").write_text(json.dumps(config), "utf-8")


def reference(folder: Path, path: Path, tokens: list[int]) -> Any:
    """Returns the logits of the weights as the gguf package decodes them."""
    import gguf
    from gguf.quants import dequantize
    from infinicore_infer.checkpoint.checkpoint import Checkpoint
    from infinicore_infer.checkpoint.gguf_blocks import GgufMatrix
    from reference.gguf_files import hf_values
    from reference.qwen3_numpy import forward
    from reference.random_checkpoint import load_config

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 8)
    checkpoint, values = Checkpoint(path), {}
    for name in hf_values(folder / "model"):
        stem, _, ending = name.rpartition(".")
        weight = checkpoint[f"{names.get_name(stem)}.{ending}"]
        values[name] = (
            dequantize(weight.octets, gguf.GGMLQuantizationType(weight.kind))
            if isinstance(weight, GgufMatrix)
            else weight.decoded()
        )
    return forward(load_config(folder / "model"), values, tokens)


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Print a row for each kind."""
    from infinicore_infer.text.tokenizer import Qwen3Tokenizer
    from qwen3 import Qwen3ForCausalLM

    make_model(folder)
    convert = [sys.executable, args.converter, folder / "model", "--outtype", "f32"]
    convert += ["--outfile", folder / "F32.gguf"]
    subprocess.run([str(part) for part in convert], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([args.peer, __file__, "--worker", str(folder)], check=True)
    official = Qwen3Tokenizer(folder / "model")
    print("| file | MB | our largest error | llama.cpp's | our RMS error | llama.cpp's |")
    print("|---|---|---|---|---|---|", flush=True)
    for kind in ("F32", *MIXTURES):
        path = folder / f"{kind}.gguf"
        with np.load(folder / f"{kind}.npz") as stored:
            tokens, theirs = stored["tokens"].tolist(), stored["logits"]
        with Qwen3ForCausalLM(path, dtype=args.dtype, cache=False) as model:
            assert model.encode(TEXT) == official.encode(TEXT) == tokens
            chat = [{"role": "user", "content": TEXT}]
            assert model.chat_prompt(chat) == official.apply_chat_template(
                chat, variables={"enable_thinking": True}
            )
            assert model.meta.end_tokens == [151645, 151643]
            ours = model.forward(tokens)
        expected = reference(folder, path, tokens)
        spread = expected.std()
        figures = []
        for logits in (ours, theirs):
            error = (logits - expected) / spread
            figures.append((np.abs(error).max(), np.sqrt((error**2).mean())))
        (our_max, our_rms), (their_max, their_rms) = figures
        print(
            f"| {kind} | {path.stat().st_size / 1e6:.1f} | {our_max:.1e} | {their_max:.1e} "
            f"| {our_rms:.1e} | {their_rms:.1e} |",
            flush=True,
        )


def main() -> None:
    """Run in either role."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="Python that has llama_cpp")
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--dtype", help="format of our weights (default: the file's)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        run_llama(args.worker)
        return
    if args.peer is None or args.converter is None:
        parser.error("--peer and --converter are needed")
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


if __name__ == "__main__":
    main()
