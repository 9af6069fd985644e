"""Options of the server's command line."""

from __future__ import annotations

import argparse

from infinicore_infer.arguments import (
    add_lookup_argument,
    add_model_arguments,
    add_model_path,
    add_server_arguments,
    add_task_argument,
    body_size,
    memory_size,
    positive_count,
    seconds,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="qwen3-server",
        description="Serve a Qwen3 model to clients of OpenAI's, Anthropic's and Ollama's APIs.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_model_path(parser)
    add_model_arguments(parser)
    add_task_argument(parser)
    add_server_arguments(parser)
    add(
        "--prefix-cache",
        type=memory_size,
        metavar="SIZE",
        help="part of --kv-memory that beginnings of past requests may take; 0 turns the cache "
        "off (default: half)",
    )
    add(
        "--prefix-dir",
        metavar="DIR",
        help="folder that often used beginnings are kept in for the next start (default: none)",
    )
    add(
        "--prefix-disk",
        type=memory_size,
        default=4 << 30,
        metavar="SIZE",
        help="disk space that they may take there (default: 4G)",
    )
    add(
        "--response-memory",
        type=memory_size,
        default=64 << 20,
        metavar="SIZE",
        help="memory that responses of /v1/responses may take which clients may ask for again or "
        "go on from; the oldest go first; 0 stores none (default: 64M)",
    )
    add(
        "--response-time",
        type=seconds,
        default=24 * 3600.0,
        metavar="S",
        help="seconds that each is stored (default: 86400, a day)",
    )
    add(
        "--response-dir",
        metavar="DIR",
        help="folder that they are kept in for the next start, for one server alone "
        "(default: none)",
    )
    add_lookup_argument(parser)
    add(
        "--step-tokens",
        type=positive_count,
        default=0,
        metavar="N",
        help="most tokens that one step computes (default: 512 on the CPU, 1024 on other devices)",
    )
    add(
        "--step-seconds",
        type=seconds,
        default=0.12,
        metavar="S",
        help="seconds that a step may take while answers are in progress, which is the time "
        "between two tokens of an answer while prompts are read (default: %(default)g)",
    )
    add(
        "--prompt-seconds",
        type=seconds,
        default=0.6,
        metavar="S",
        help="seconds that a step may take while no answer is in progress, or while two or more "
        "prompts are read: then for at most one in ten tokens of an answer; up to --step-seconds: "
        "none comes later than that (default: %(default)g)",
    )
    add(
        "--request-timeout",
        type=seconds,
        metavar="S",
        help="seconds after which a request is given up (default: never)",
    )
    add(
        "--max-body",
        type=body_size,
        default=16 << 20,
        metavar="SIZE",
        help="longest body of a request (default: 16M)",
    )
    add(
        "--max-bodies-memory",
        type=memory_size,
        metavar="SIZE",
        help="memory that the bodies of all requests which are being read may take together; the "
        "largest gets status 503 when it is not enough (default: 256M, or twice --max-body)",
    )
    add(
        "--head-timeout",
        type=seconds,
        default=20.0,
        metavar="S",
        help="seconds that a client may take to send the head of a request (default: %(default)g)",
    )
    add(
        "--body-timeout",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds that it may take to send the body; then it gets status 408 "
        "(default: %(default)g)",
    )
    add(
        "--send-timeout",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds that a client may leave unread what waits to be sent to it; then its "
        "connection is closed (default: %(default)g)",
    )
    add(
        "--max-connections",
        type=positive_count,
        default=1000,
        metavar="N",
        help="number of connections at a time; for one more, the one that has been idle for "
        "longest is closed (default: %(default)s, or what the limit of open files allows)",
    )
    add(
        "--ping",
        type=seconds,
        default=15.0,
        metavar="S",
        help="seconds of silence after which a stream sends a keep-alive comment "
        "(default: %(default)g)",
    )
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="URL",
        help="origin whose pages may use the server from a browser; may be given several times "
        "(default: none but the server's own)",
    )
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name besides this machine's own that a request may call the server by, see "
        "docs/server.md; may be given several times",
    )
    add(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="least important kind of message that is written (default: %(default)s)",
    )
    add(
        "--log-format",
        default="text",
        choices=("text", "json"),
        help="form of the log: lines of text, or one JSON object a line (default: %(default)s)",
    )
    return parser
