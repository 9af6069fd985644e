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
    api_key,
    is_loopback,
    model_folder,
    model_options,
    service_options,
)
from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.checkpoint.opening import is_model
from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.engine.engine import Engine
from infinicore_infer.errors import FieldError
from infinicore_infer.server.app import make_app
from infinicore_infer.server.bodies import BodyLimits
from infinicore_infer.server.chat_request import checked_variables
from infinicore_infer.server.connections import ConnectionLimits, protocol_class, usable_connections
from infinicore_infer.server.draining import DrainingServer
from infinicore_infer.server.options import build_parser
from infinicore_infer.server.service import Service, ServiceConfig
from infinicore_infer.text.chat_template import ChatTemplates

_LOG = logging.getLogger("infinicore_infer.server")
# How long a thread that computes in Python keeps the interpreter's lock while the event loop waits
# for it, which it does after every read and write of a socket. Python's own 5 ms add up to more
# than 100 ms where a large request is read beside.
_SWITCH_SECONDS = 0.001


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


def _service(args: argparse.Namespace, folder: Path) -> Service:
    key, local = api_key(args), is_loopback(args.host)
    if key is None and not local:
        _LOG.warning("anybody who reaches %s can use this server: set --api-key", args.host)
    hosts = frozenset(host.lower() for host in (*args.allowed_host, socket.gethostname()))
    checked = args.allowed_host or (local and key is None)
    return Service(
        ServiceConfig(
            **service_options(args, folder),
            api_key=key,
            max_body_bytes=args.max_body,
            request_timeout=args.request_timeout,
            ping_seconds=args.ping,
            hosts=hosts if checked else None,
            response_bytes=args.response_memory,
            response_seconds=args.response_time,
            response_dir=Path(args.response_dir) if args.response_dir else None,
        )
    )


def _engine_config(args: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        max_batch=args.max_batch,
        max_queue=args.max_queue,
        step_tokens=args.step_tokens,
        step_seconds=args.step_seconds,
        prompt_seconds=args.prompt_seconds,
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


def _check_templates(args: argparse.Namespace) -> None:
    """See to it that what concerns chat templates is right before the model is loaded.

    Raises:
        ValueError: Something is wrong.
        OSError: The template cannot be read.
    """
    if args.chat_template is not None:
        ChatTemplates(None, {}).replace(args.chat_template)
    try:
        checked_variables(args.default_chat_template_kwargs)
    except FieldError as error:
        raise ValueError(error.message("--default-chat-template-kwargs")) from None


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
    _check_templates(args)
    service, config = _service(args, folder), _engine_config(args)
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
                task=args.task,
                **model_options(args),
            )
            service.attach(Engine(model, config))
            # What is here now stays: searching it for garbage again and again would stop all
            # threads for some 100 ms each time.
            gc.collect()
            gc.freeze()
            _LOG.info("model %r is ready, for task %r", service.config.model_name, model.task)
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
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        return _run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
