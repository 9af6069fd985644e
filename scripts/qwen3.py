"""Runs Qwen3 models: ``Qwen3ForCausalLM`` for programs, a command line for people.

Example:
    from qwen3 import Qwen3ForCausalLM

    with Qwen3ForCausalLM("Qwen3-0.6B") as model:
        print(model.chat([{"role": "user", "content": "Hello!"}], max_steps=100))
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infinicore_infer.causal_lm import (
    DataType,
    DeviceType,
    GenerationPiece,
    GenerationResult,
    GenerationStream,
    KVCache,
    PerplexityResult,
    Prompt,
    Qwen3Cancelled,
    Qwen3Error,
    Qwen3ForCausalLM,
    Qwen3MetaFromConfig,
    Qwen3WeightsImpl,
    Qwen3WeightsNaming,
    RerankResult,
    SamplingParams,
    TokenizerError,
    TokenLogprobs,
)

__all__ = [
    "DataType",
    "DeviceType",
    "GenerationPiece",
    "GenerationResult",
    "GenerationStream",
    "KVCache",
    "PerplexityResult",
    "Prompt",
    "Qwen3Cancelled",
    "Qwen3Error",
    "Qwen3ForCausalLM",
    "Qwen3MetaFromConfig",
    "Qwen3WeightsImpl",
    "Qwen3WeightsNaming",
    "RerankResult",
    "SamplingParams",
    "TokenLogprobs",
    "TokenizerError",
    "main",
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``infinicore_infer/cli.py``."""
    # Imported here: programs that use the class need no command line.
    from infinicore_infer import cli

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
