"""Serves a Qwen3 model over HTTP, the way OpenAI's clients expect. See docs/server.md.

Example:
    python scripts/launch_server.py --model-path Qwen3-0.6B --port 8000
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from libinfinicore_infer import Qwen3Error, load_library

from infinicore_infer.arguments import (
    add_lookup_argument,
    add_model_arguments,
    add_model_path,
    add_server_arguments,
    api_key,
    body_size,
    is_loopback,
    memory_size,
    model_folder,
    model_options,
    positive_count,
    seconds,
)
from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.checkpoint.opening import is_model
from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.engine.engine import Engine
from infinicore_infer.server.app import make_app
from infinicore_infer.server.bodies import BodyLimits
from infinicore_infer.server.connections import ConnectionLimits, protocol_class, usable_connections
from infinicore_infer.server.draining import DrainingServer
from infinicore_infer.server.service import Service, ServiceConfig

_LOG = logging.getLogger("infinicore_infer.server")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="qwen3-server",
        description="Serve a Qwen3 model to clients of OpenAI's and Anthropic's APIs.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_model_path(parser)
    add_model_arguments(parser)
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
    add_lookup_argument(parser)
    add(
        "--step-tokens",
        type=positive_count,
        default=512,
        metavar="N",
        help="most tokens that one step computes (default: %(default)s)",
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


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON; those of requests have their numbers as fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            **(getattr(record, "fields", None) or {"message": record.getMessage()}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _service(args: argparse.Namespace, name: str) -> Service:
    key, local = api_key(args), is_loopback(args.host)
    if key is None and not local:
        _LOG.warning("anybody who reaches %s can use this server: set --api-key", args.host)
    hosts = frozenset(host.lower() for host in (*args.allowed_host, socket.gethostname()))
    checked = args.allowed_host or (local and key is None)
    return Service(
        ServiceConfig(
            model_name=name,
            api_key=key,
            max_body_bytes=args.max_body,
            request_timeout=args.request_timeout,
            ping_seconds=args.ping,
            hosts=hosts if checked else None,
            unknown_fields=args.unknown_fields,
        )
    )


def _engine_config(args: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        max_batch=args.max_batch,
        max_queue=args.max_queue,
        step_tokens=args.step_tokens,
        step_seconds=args.step_seconds,
        prefix_cache_bytes=args.prefix_cache,
        prefix_dir=Path(args.prefix_dir) if args.prefix_dir else None,
        prefix_disk_bytes=args.prefix_disk,
        lookup=args.lookup,
    )


def _bodies_memory(args: argparse.Namespace) -> int:
    """Return --max-bodies-memory.

    Raises:
        ValueError: It is too small for a single body.
    """
    given: int | None = args.max_bodies_memory
    if given is None:
        return max(256 << 20, 2 * int(args.max_body))
    if given < args.max_body:
        raise ValueError(f"--max-bodies-memory {given} is less than --max-body {args.max_body}")
    return given


def _run(args: argparse.Namespace) -> int:
    folder = model_folder(args.model_path)
    try:
        known = is_model(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not known:
        print(
            f"error: {folder}: no model folder (config.json is missing) and no GGUF file",
            file=sys.stderr,
        )
        return 1
    name = args.model_name or folder.resolve().name.removesuffix(".gguf")
    service, config = _service(args, name), _engine_config(args)
    bodies_memory = _bodies_memory(args)
    limits = ConnectionLimits(
        usable_connections(args.max_connections),
        args.head_timeout,
        args.body_timeout,
        args.send_timeout,
    )

    def load() -> None:
        try:
            model = Qwen3ForCausalLM(
                folder,
                max_tokens=args.max_tokens,
                kv_limit_bytes=args.kv_memory,
                max_step_tokens=args.step_tokens,
                **model_options(args),
            )
            service.attach(Engine(model, config))
            # What is here now stays: searching it for garbage again and again would stop all
            # threads for some 100 ms each time.
            gc.collect()
            gc.freeze()
            _LOG.info("model %r is ready", name)
        except (ValueError, OSError, MemoryError, NotImplementedError, Qwen3Error) as error:
            print(f"error: {error}", file=sys.stderr)
            server.failed = server.should_exit = True
        except Exception:
            _LOG.exception("loading failed")
            server.failed = server.should_exit = True

    def start() -> None:
        threading.Thread(target=load, name="loader", daemon=True).start()

    def stop() -> None:
        if service.async_engine is not None:
            service.async_engine.engine.close()
            service.async_engine.engine.model.close()

    version = load_library().qwen3Version().decode()
    app = make_app(
        service,
        version=version,
        start=start,
        stop=stop,
        cors_origins=args.cors_origin,
    )
    server = DrainingServer(
        uvicorn.Config(
            BodyLimits(app, args.body_timeout, bodies_memory),
            host=args.host,
            port=args.port,
            http=protocol_class(limits),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        ),
        service,
        args.drain_timeout,
    )
    server.run()
    return 1 if server.failed or not server.started else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; return the exit status."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    if args.log_format == "json":
        for handler in logging.root.handlers:
            handler.setFormatter(JsonFormatter())
    logging.getLogger("uvicorn").setLevel(max(logging.INFO, logging.root.level))
    try:
        return _run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
