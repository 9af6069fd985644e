"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from infinicore_infer.engine.config import EngineStats

_PREFIX = "infinicore_infer_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

_GAUGES = {
    "running": ("requests_running", "Requests being computed"),
    "waiting": ("requests_waiting", "Requests in the queue"),
    "kv_used_bytes": ("kv_used_bytes", "KV memory in use, remembered prefixes included"),
    "kv_limit_bytes": ("kv_limit_bytes", "Most KV memory"),
    "caches": ("kv_caches", "Live KV caches, those of remembered prefixes included"),
    "prefix_bytes": ("prefix_cache_bytes", "KV memory of remembered prefixes"),
    "prefix_nodes": ("prefix_cache_nodes", "Remembered prefixes"),
    "draining": ("draining", "1 while the server shuts down"),
}
_COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts, cached ones included"),
    "cached_tokens": ("cached_prompt_tokens", "Tokens of prompts found in the prefix cache"),
    "generated_tokens": ("generated_tokens", "Tokens generated"),
    "drafted_tokens": ("drafted_tokens", "Tokens guessed by lookup and verified"),
    "accepted_tokens": ("accepted_tokens", "Tokens guessed right"),
    "prefix_lookups": ("prefix_cache_lookups", "Prompts looked up in the prefix cache"),
    "prefix_hits": ("prefix_cache_hits", "Prompts of which it knew a beginning"),
    "prefix_loads": ("prefix_disk_loads", "Prefixes that came from disk"),
    "prefix_saves": ("prefix_disk_saves", "Prefixes written to disk"),
    "steps": ("steps", "Steps computed"),
    "step_seconds": ("step_seconds", "Time spent computing"),
    "failed_steps": ("failed_steps", "Steps that failed"),
    "preemptions": ("preemptions", "Requests that gave their KV memory back for a while"),
}


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for field, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(_PREFIX + name, text, float(getattr(stats, field)))
        for field, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(_PREFIX + name, text, float(getattr(stats, field)))


class Metrics:
    """Everything that /metrics shows.

    Attributes:
        requests: Finished requests by path and status.
        seconds: Duration of requests by path.
        first_token: Seconds from arrival to the first token.
        between_tokens: Seconds from one token to the next.
    """

    def __init__(self) -> None:
        """Count from zero; :meth:`watch` adds the engine's numbers."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            _PREFIX + "requests", "Requests", ("path", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            _PREFIX + "request_seconds",
            "Duration of requests",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            _PREFIX + "time_to_first_token_seconds",
            "From a request's arrival to its first token",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.between_tokens = Histogram(
            _PREFIX + "inter_token_seconds",
            "From one token of an answer to the next",
            buckets=_SHORT,
            registry=self._registry,
        )

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Include an engine's numbers."""
        self._registry.register(_EngineCollector(stats))

    def text(self) -> bytes:
        """Return the exposition format."""
        return generate_latest(self._registry)
