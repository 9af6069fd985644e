"""``qwen3 embed`` and ``qwen3 rerank``: texts in, lines of JSON out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

from infinicore_infer.arguments import (
    add_model_arguments,
    add_model_path,
    model_folder,
    model_options,
    positive_count,
)
from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.chat.streams import as_utf8, note, read_input, write, writes_utf8

COMMANDS = ("embed", "rerank")
# Texts whose vectors are written before the next ones are computed.
_AT_ONCE = 256


def build_parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Return the parser of both commands.

    Args:
        kind: The class of parsers.
    """
    parser = kind(prog="qwen3", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=kind)
    embed = commands.add_parser(
        "embed",
        allow_abbrev=False,
        description="Write the vector of each text as a line of JSON: index, text, embedding.",
    )
    _add_common(embed, "TEXT", "texts to embed")
    embed.add_argument(
        "--dimensions",
        type=positive_count,
        metavar="N",
        help="number of components that are kept of a vector (default: all)",
    )
    embed.add_argument(
        "--instruction",
        metavar="TEXT",
        help="task that the texts are queries of (default: they are embedded as they are, as "
        "documents are)",
    )
    embed.add_argument(
        "--no-normalize", action="store_true", help="do not scale vectors to length 1"
    )
    rerank = commands.add_parser(
        "rerank",
        allow_abbrev=False,
        description="Judge how well documents answer a query, and write them as lines of JSON, the "
        "best first: index, score, document.",
    )
    _add_common(rerank, "DOCUMENT", "documents to judge")
    rerank.add_argument("--query", required=True, metavar="TEXT", help="query to judge them for")
    rerank.add_argument(
        "--instruction",
        metavar="TEXT",
        help="what a document has to be good for (default: to answer a web search)",
    )
    rerank.add_argument(
        "--top-n", type=positive_count, metavar="N", help="only the best so many (default: all)"
    )
    return parser


def _add_common(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    parser.add_argument(
        "texts", nargs="*", metavar=name, help=f"{what} (default: the lines of standard input)"
    )
    add_model_path(parser)
    add_model_arguments(parser)
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="cut the end of texts that are too long off, instead of refusing them",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="write no notes and no progress bar to standard error",
    )


def run(args: argparse.Namespace) -> int:
    """Run a command; return the exit code.

    Raises:
        ValueError: An argument or a text is not acceptable.
        OSError: A file is missing, or standard output is closed.
        Qwen3Error: The library failed.
    """
    folder = model_folder(args.model_path)
    if args.model_path is None and not args.quiet:
        note(f"no --model-path: using the tiny demo model in {folder}")
    texts = _texts(args)
    for name in ("query", "instruction"):
        if getattr(args, name, None) is not None:
            setattr(args, name, as_utf8(getattr(args, name), sys.getfilesystemencoding()))
    options = {"progress": not args.quiet, "task": args.command, **model_options(args)}
    with Qwen3ForCausalLM(folder, **options) as model:
        (_embed if args.command == "embed" else _rerank)(model, texts, args)
    return 0


def _texts(args: argparse.Namespace) -> list[str]:
    """Return the arguments, or the lines of standard input.

    Raises:
        ValueError: There is neither.
    """
    if args.texts:
        return [as_utf8(text, sys.getfilesystemencoding()) for text in args.texts]
    given = read_input()
    if not given:
        raise ValueError("there are no texts: neither arguments nor lines of standard input")
    return given.split("\n")


def _embed(model: Qwen3ForCausalLM, texts: Sequence[str], args: argparse.Namespace) -> None:
    lines, index = iter(texts), 0
    model.embedder.check_dimensions(args.dimensions)
    while part := list(islice(lines, _AT_ONCE)):
        vectors = model.embed(
            part,
            args.dimensions,
            args.instruction,
            not args.no_normalize,
            truncate=args.truncate,
        )
        for text, vector in zip(part, vectors, strict=True):
            _write({"index": index, "text": text, "embedding": vector.tolist()})
            index += 1


def _rerank(model: Qwen3ForCausalLM, texts: Sequence[str], args: argparse.Namespace) -> None:
    results = model.rerank(
        args.query, texts, args.instruction, top_n=args.top_n, truncate=args.truncate
    )
    for each in results:
        _write({"index": each.index, "score": each.score, "document": each.document})


def _write(value: dict[str, Any]) -> None:
    write(json.dumps(value, ensure_ascii=not writes_utf8()) + "\n")
