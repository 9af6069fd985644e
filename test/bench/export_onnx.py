"""Writes a random model's body as ONNX, for embeddings.py: the last token's normed hidden state.

    python test/bench/export_onnx.py --model 0.6b model.onnx
    python test/bench/export_onnx.py --model 0.6b model.onnx --int8 model-int8.onnx

Needs torch, transformers, onnx, onnxscript, and onnxruntime for int8 (weights of 8 bits, and
activations rounded to 8 bits at run time, as fastembed and Optimum make files for CPUs).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from infinicore_infer.tools.bench_models import SHAPES, official_config
from peer_models import random_torch_model


class LastState(torch.nn.Module):
    """The model's body, of whose hidden states only each text's last one leaves it."""

    def __init__(self, body: Any) -> None:
        """Wrap it."""
        super().__init__()
        self.body = body

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return [texts, width]; all texts are of the same length, so nothing is masked."""
        state = self.body(input_ids=input_ids, use_cache=False).last_hidden_state[:, -1]
        return torch.nn.functional.normalize(state, dim=-1)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", default="0.6b", choices=list(SHAPES))
    parser.add_argument("--texts", type=int, default=16, help="texts of a call")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a text")
    parser.add_argument("--int8", type=Path, help="also write this file")
    args = parser.parse_args()
    settings = transformers.Qwen3Config(**official_config(args.model))
    body = LastState(random_torch_model(settings).float().model).eval()
    ids = torch.zeros((args.texts, args.tokens), dtype=torch.int64)
    torch.onnx.export(
        body, (ids,), args.path, input_names=["input_ids"], dynamo=True, external_data=True
    )
    if args.int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            args.path,
            args.int8,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )


if __name__ == "__main__":
    main()
