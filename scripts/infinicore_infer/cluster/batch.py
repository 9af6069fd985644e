"""Answers the prompts of many files on a Ray cluster, without a server.

    pip install -r scripts/requirements/ray.txt
    python -m infinicore_infer.cluster.batch --model-path DIR --output answers prompts/*.jsonl

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

from infinicore_infer.arguments import (
    add_model_path,
    count,
    model_folder,
    positive_count,
    temperature,
)
from infinicore_infer.engine.llm import LLM
from infinicore_infer.paths import PACKAGES


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
    add("files", nargs="+", help="files of prompts, one JSON object a line")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder that answers.jsonl is written to",
    )
    add_model_path(parser)
    add(
        "--workers",
        type=positive_count,
        default=1,
        metavar="N",
        help="number of models that the cluster loads (default: %(default)s)",
    )
    add(
        "--threads",
        type=count,
        default=0,
        metavar="N",
        help="number of CPUs that a worker asks Ray for and computes with "
        "(default: 0, which asks for 1 and computes with all)",
    )
    add(
        "--batch",
        type=positive_count,
        default=256,
        metavar="N",
        help="number of prompts that a worker is handed at once (default: %(default)s)",
    )
    add(
        "--max-tokens",
        type=positive_count,
        default=256,
        metavar="N",
        help="longest answer in tokens (default: %(default)s)",
    )
    add(
        "--temperature",
        type=temperature,
        metavar="X",
        help="temperature of sampling; 0 always takes the likeliest token "
        "(default: the checkpoint's)",
    )
    add(
        "--seed", type=int, metavar="N", help="seed that makes answers repeatable (default: random)"
    )
    add(
        "--address",
        metavar="HOST:PORT",
        help="address of the cluster (default: the one that this machine belongs to, else one of "
        "its own)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Answer; return the exit status."""
    args = build_parser().parse_args(argv)
    path = str(model_folder(args.model_path).resolve())
    environment = {"env_vars": {"PYTHONPATH": str(PACKAGES)}}
    ray.init(address=args.address, logging_level=logging.WARNING, runtime_env=environment)
    files = [str(Path(file).resolve()) for file in args.files]
    print(f"{answer_files(files, args.output, path, args)} prompts answered")
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
