"""Answers the prompts of many files on a Ray cluster, without a server.

    pip install -r scripts/requirements/ray.txt
    python scripts/ray_batch.py --model-path /models/Qwen3-0.6B --output answers prompts/*.jsonl

The files hold one JSON object per line with a ``prompt``, or ``messages`` for a chat. The output
folder gets answers.jsonl with the same objects, each with the ``text`` and ``finish_reason`` of its
answer, thinking included, in any order. Workers load the model once and batch continuously.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from infinicore_infer.engine.llm import LLM
from infinicore_infer.paths import DEMO, PACKAGES


class Answerer:
    """A worker."""

    def __init__(self, model_path: str, threads: int, settings: dict[str, Any]) -> None:
        """Load the model."""
        self._llm = LLM(model_path, threads=threads)
        self._settings = settings

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the lines in ``batch["line"]``."""
        items = [json.loads(line) for line in batch["line"]]
        prompts = [
            self._llm.model.chat_prompt(item["messages"]) if "messages" in item else item["prompt"]
            for item in items
        ]
        results = self._llm.generate(prompts, **self._settings)
        for item, result in zip(items, results, strict=True):
            item |= {"text": result.text, "finish_reason": result.finish_reason}
        return {"line": [json.dumps(item, ensure_ascii=False) for item in items]}


def answer_files(
    files: Sequence[str], output: Path, model_path: str, args: argparse.Namespace
) -> int:
    """Answer files on the cluster that ``ray.init`` has joined; return how many prompts."""
    settings = {"max_steps": args.max_tokens, "temperature": args.temperature, "seed": args.seed}
    answers = ray.data.read_text(list(files), drop_empty_lines=True).rename_columns(["line"])
    answers = answers.map_batches(
        Answerer,
        fn_constructor_args=(model_path, args.threads, settings),
        batch_size=args.batch,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_cpus=args.threads or 1,
    )
    output.mkdir(parents=True, exist_ok=True)
    count = 0
    with (output / "answers.jsonl").open("w", encoding="utf-8") as file:
        for row in answers.iter_rows():
            file.write(row["line"] + "\n")
            count += 1
    return count


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="+", help="JSON lines")
    add("--output", type=Path, required=True, metavar="DIR")
    add("--model-path", metavar="DIR", help="checkpoint folder (default: the tiny demo model)")
    add("--workers", type=int, default=1, metavar="N", help="models loaded in the cluster")
    add("--threads", type=int, default=0, metavar="N", help="CPUs of a worker (default: 1, all)")
    add("--batch", type=int, default=256, metavar="N", help="prompts handed to a worker at once")
    add("--max-tokens", type=int, default=256, metavar="N", help="of an answer")
    add("--temperature", type=float, metavar="T", help="0: greedy (default: the model's)")
    add("--seed", type=int, metavar="N", help="for answers that can be repeated")
    add("--address", metavar="HOST:PORT", help="of the cluster (default: the one at hand, or own)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Answer; return the exit status."""
    args = build_parser().parse_args(argv)
    path = str(Path(args.model_path or DEMO).resolve())
    environment = {"env_vars": {"PYTHONPATH": str(PACKAGES)}}
    ray.init(address=args.address, logging_level=logging.WARNING, runtime_env=environment)
    files = [str(Path(file).resolve()) for file in args.files]
    print(f"{answer_files(files, args.output, path, args)} prompts answered")
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
