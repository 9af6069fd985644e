"""Measures loading: time and peak resident memory against the size of the packed weights.

    python test/bench/load_memory.py [--model 0.6b] [--dtype bf16 int8]

Writes a random bf16 checkpoint of an official shape to a temporary folder, loads it in processes of
their own, and prints one JSON object per load: for int8, int4 and bf12 a second one, which finds
the packed weights on disk. The page cache is warm, since the files were just written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from bench import SHAPES, official_config  # noqa: E402
from libinfinicore_infer import DataType  # noqa: E402

CHILD = """
import json, resource, sys, time
folder, scripts, dtype, cache = sys.argv[1:]
sys.path.insert(0, scripts)
from qwen3 import Qwen3ForCausalLM
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
start = time.perf_counter()
model = Qwen3ForCausalLM(folder, dtype=dtype, cache_dir=cache, kv_limit_bytes=1 << 30)
loaded = time.perf_counter() - start
model.forward([1, 2, 3])
first = time.perf_counter() - start
stats = model.stats()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"dtype": dtype, "load_seconds": loaded, "first_step_seconds": first,
                  "python_bytes": before, "peak_bytes": peak, **stats}))
model.close()
"""


def write_checkpoint(folder: Path, name: str) -> None:
    """Write config.json and a random model.safetensors in bf16."""
    config = official_config(name)
    hidden, layers, heads, kv_heads, inner, tied = SHAPES[name]
    dim = config["head_dim"]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden]}
    if not tied:
        shapes["lm_head.weight"] = [config["vocab_size"], hidden]
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= {
            p + "input_layernorm.weight": [hidden],
            p + "post_attention_layernorm.weight": [hidden],
            p + "self_attn.q_norm.weight": [dim],
            p + "self_attn.k_norm.weight": [dim],
            p + "self_attn.q_proj.weight": [heads * dim, hidden],
            p + "self_attn.k_proj.weight": [kv_heads * dim, hidden],
            p + "self_attn.v_proj.weight": [kv_heads * dim, hidden],
            p + "self_attn.o_proj.weight": [hidden, heads * dim],
            p + "mlp.gate_proj.weight": [inner, hidden],
            p + "mlp.up_proj.weight": [inner, hidden],
            p + "mlp.down_proj.weight": [hidden, inner],
        }
    shapes["model.norm.weight"] = [hidden]
    header, offset = {}, 0
    for key, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)
    block = (random.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, len(block)):
            file.write(block[: offset - start])
    (folder / "config.json").write_text(json.dumps(config))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="0.6b")
    parser.add_argument("--dtype", nargs="+", default=["bf16"], help="weight formats")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), args.model)
        for dtype in args.dtype:
            for _ in range(2 if DataType.parse(dtype).packed else 1):
                command = [sys.executable, "-c", CHILD, folder, str(ROOT / "scripts"), dtype]
                command.append(str(Path(folder) / "cache"))
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                result = json.loads(output)
                packed = result["weight_bytes"] + result["scratch_bytes"]
                result["peak_over_packed"] = (
                    result["peak_bytes"] - result["python_bytes"]
                ) / packed
                print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
