"""Measures what a weight format costs in quality, against the checkpoint's own format.

    qwen3-quality --model-path DIR --text FILE --dtype int8 int4

For each format: perplexity of the text, mean Kullback-Leibler divergence of the next-token
distributions from the reference's, the share of positions where the likeliest token is the same,
and the relative error of the logits. Chunks of --context tokens, each read from an empty cache, the
first half of a chunk not scored.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.arguments import (
    Precision,
    add_model_path,
    count,
    model_folder,
    positive_count,
)
from infinicore_infer.causal_lm import Qwen3ForCausalLM

Logits = NDArray[np.float32]


@dataclasses.dataclass(slots=True)
class Quality:
    """One format's figures.

    Attributes:
        dtype: Weight format.
        weight_mb: Packed weights, 10^6 bytes.
        perplexity: exp of the mean negative log-likelihood, nats.
        mean_kld: Mean divergence from the reference, nats per token.
        same_top: Share of positions with the reference's likeliest token.
        logit_error: Root mean square of the difference over that of the reference's logits.
        tokens: Positions scored.
    """

    dtype: str
    weight_mb: float
    perplexity: float
    mean_kld: float
    same_top: float
    logit_error: float
    tokens: int


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Return log-probabilities [n, dvoc] in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result


class Accumulator:
    """Sums over chunks."""

    def __init__(self) -> None:
        self.tokens = 0
        self.nll = self.kld = self.same = self.error = self.norm = 0.0

    def add(self, reference: Logits, logits: Logits, targets: NDArray[Any]) -> None:
        """Add one chunk: logits [n, dvoc] of both models and the n tokens that followed."""
        p, q = log_softmax(reference), log_softmax(logits)
        rows = np.arange(len(targets))
        self.tokens += len(targets)
        self.nll -= float(q[rows, targets].sum())
        self.kld += float((np.exp(p) * (p - q)).sum())
        self.same += float((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        difference = (logits - reference).astype(np.float64)
        self.error += float((difference**2).sum())
        self.norm += float((reference.astype(np.float64) ** 2).sum())

    def result(self, dtype: str, weight_bytes: int) -> Quality:
        """Return the means."""
        n = self.tokens
        return Quality(
            dtype=dtype,
            weight_mb=weight_bytes / 1e6,
            perplexity=float(np.exp(self.nll / n)),
            mean_kld=self.kld / n,
            same_top=self.same / n,
            logit_error=float(np.sqrt(self.error / self.norm)),
            tokens=n,
        )


def compare(
    model_path: Path,
    tokens: Sequence[int],
    formats: Sequence[Precision],
    context: int,
    threads: int,
) -> list[Quality]:
    """Measure each format on the same chunks; the first row is the reference against itself.

    That is the checkpoint's own weights, with activations in float32.
    """
    models = [Qwen3ForCausalLM(model_path, activations="f32", threads=threads)]
    sums = [Accumulator() for _ in range(1 + len(formats))]
    try:
        for weights, activations in formats:
            models.append(
                Qwen3ForCausalLM(
                    model_path, dtype=weights, activations=activations, threads=threads
                )
            )
        for start in range(0, len(tokens) - 2, context):
            chunk = list(tokens[start : start + context])
            first = len(chunk) // 2
            if len(chunk) < 4:
                break
            targets = np.asarray(chunk[first + 1 :])
            reference = models[0].forward(chunk)[first:-1]
            for model, total in zip(models, sums, strict=True):
                logits = reference if model is models[0] else model.forward(chunk)[first:-1]
                total.add(reference, logits, targets)
        return [
            total.result(name, model.stats()["weight_bytes"])
            for total, model, name in zip(
                sums, models, ["checkpoint", *map(str, formats)], strict=True
            )
        ]
    finally:
        for model in models:
            model.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="qwen3-quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_model_path(parser)
    add(
        "--text",
        type=Path,
        required=True,
        metavar="FILE",
        help="file of UTF-8 text that the formats are measured on",
    )
    add(
        "--dtype",
        nargs="+",
        type=Precision.parse,
        default=[Precision("int8"), Precision("int4")],
        metavar="TYPE",
        help="weight formats that are measured, each alone or with what it is multiplied with, "
        "as in int8:int16 (default: int8 int4)",
    )
    add(
        "--context",
        type=positive_count,
        default=512,
        metavar="N",
        help="number of tokens in a chunk, at least 4 (default: %(default)s)",
    )
    add(
        "--limit",
        type=positive_count,
        default=20000,
        metavar="N",
        help="number of tokens after which the rest of the text is left out (default: %(default)s)",
    )
    add(
        "--threads",
        type=count,
        default=0,
        metavar="N",
        help="number of CPU threads that compute (default: 0, as many as there are usable CPUs)",
    )
    add("--json", action="store_true", help="write the figures as JSON instead of a table")
    args = parser.parse_args(argv)
    if args.context < 4:
        parser.error(f"--context is {args.context}, must be at least 4")
    try:
        folder = model_folder(args.model_path)
    except ValueError as error:
        parser.error(str(error))
    try:
        text = args.text.read_text(encoding="utf-8")
        with Qwen3ForCausalLM(folder) as model:
            tokens = model.encode(text)[: args.limit]
        if len(tokens) < 4:
            raise ValueError(f"{args.text} has {len(tokens)} tokens; at least 4 are needed")
        rows = compare(folder, tokens, args.dtype, args.context, args.threads)
    except (OSError, ValueError, NotImplementedError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return 0
    names = [field.name for field in dataclasses.fields(Quality)]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        cells = [f"{v:.5g}" if isinstance(v, float) else str(v) for v in dataclasses.astuple(row)]
        print("| " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
