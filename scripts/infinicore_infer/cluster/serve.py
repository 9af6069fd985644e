"""Serves a model from many machines: the server of qwen3-server as replicas on Ray Serve.

    pip install -r scripts/requirements/ray.txt        # besides server.txt, on every machine
    ray start --head                                   # and `ray start --address=...` on the others
    python -m infinicore_infer.cluster.serve --model-path /models/Qwen3-0.6B --replicas 2

Every replica loads the model and answers by itself: the API is that of docs/server.md. The model's
folder and this package must be at the same path on every machine. Requests with the same
``X-Session-Id`` header go to the same replica, which has the chat's beginning in its prefix cache;
without the header, Ray spreads them. See "Beyond one machine" in docs/server.md.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
from libinfinicore_infer import load_library
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, ProxyLocation, RequestRouterConfig
from starlette.applications import Starlette

from infinicore_infer.arguments import (
    add_lookup_argument,
    add_model_arguments,
    add_model_path,
    add_server_arguments,
    api_key,
    is_loopback,
    model_folder,
    model_options,
    positive_count,
    service_options,
)
from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.engine.engine import Engine
from infinicore_infer.paths import PACKAGES
from infinicore_infer.server.app import make_app
from infinicore_infer.server.service import Service, ServiceConfig

_LOG = logging.getLogger("infinicore_infer.server")
_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


def app_builder(
    model: dict[str, Any], engine: dict[str, Any], service: dict[str, Any]
) -> Callable[[], Starlette]:
    """Return a function that loads the model and returns the application, on a replica.

    Args:
        model: Arguments of :class:`Qwen3ForCausalLM`.
        engine: Arguments of :class:`EngineConfig`.
        service: Arguments of :class:`ServiceConfig`.
    """

    def build() -> Starlette:
        state = Service(ServiceConfig(**service))

        def start() -> None:
            # A replica is ready when this returns, so Ray sends it nothing before.
            loaded = Qwen3ForCausalLM(**model)
            state.attach(Engine(loaded, EngineConfig(**engine)))

        def stop() -> None:
            if state.async_engine is not None:
                state.async_engine.engine.close()
                state.async_engine.engine.model.close()

        version = load_library().qwen3Version().decode()
        return make_app(state, version=version, start=start, stop=stop)

    return build


class Qwen3Replica:
    """A replica; everything is in its application."""


def deployment(args: argparse.Namespace) -> serve.Application:
    """Return what Ray Serve runs."""
    folder = model_folder(args.model_path).resolve()
    key = api_key(args)
    if key is None and not is_loopback(args.host):
        _LOG.warning("anybody who reaches %s can use this server: set --api-key", args.host)
    build = app_builder(
        {
            "model_path": str(folder),
            "max_tokens": args.max_tokens,
            "kv_limit_bytes": args.kv_memory,
            **model_options(args),
        },
        {"max_batch": args.max_batch, "max_queue": args.max_queue, "lookup": args.lookup},
        {
            **service_options(args, folder),
            "api_key": key,
        },
    )
    scaling: dict[str, Any] = {"num_replicas": args.replicas}
    if args.max_replicas > args.replicas:
        # A replica is busy when its batch is full.
        config = AutoscalingConfig(
            min_replicas=args.replicas,
            max_replicas=args.max_replicas,
            target_ongoing_requests=args.max_batch,
        )
        scaling = {"autoscaling_config": config}
    wrapped = serve.deployment(
        **scaling,
        name="qwen3",
        # What is beyond gets 429 from the replica instead of waiting out of sight.
        max_ongoing_requests=2 * (args.max_batch + args.max_queue),
        graceful_shutdown_timeout_s=args.drain_timeout,
        ray_actor_options={
            "num_cpus": args.threads or 1,
            "runtime_env": {"env_vars": {"PYTHONPATH": str(PACKAGES)}},
        },
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
    )(serve.ingress(build)(Qwen3Replica))
    return wrapped.bind()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m infinicore_infer.cluster.serve",
        description="Serve a Qwen3 model on a Ray cluster.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_model_path(parser)
    add(
        "--replicas",
        type=positive_count,
        default=1,
        metavar="N",
        help="number of replicas that always run (default: %(default)s)",
    )
    add(
        "--max-replicas",
        type=int,
        default=0,
        metavar="N",
        help="number of replicas that run under load (default: as many as always run)",
    )
    add_model_arguments(parser)  # --threads: a replica's CPUs for Ray too, or 1
    add_server_arguments(parser)
    add_lookup_argument(parser)
    add(
        "--address",
        metavar="HOST:PORT",
        help="address of the cluster (default: the one that this machine belongs to, else one of "
        "its own)",
    )
    return parser


def start(args: argparse.Namespace) -> None:
    """Deploy on the cluster that ``ray.init`` has joined; return once the replicas are ready."""
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=args.host, port=args.port),
    )
    serve.run(deployment(args), name="qwen3", route_prefix="/")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; return the exit status."""
    args = build_parser().parse_args(argv)
    ray.init(address=args.address, logging_level=logging.WARNING)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    start(args)
    ended.wait()
    serve.shutdown()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
