"""Measures an OpenAI-compatible server: throughput and latencies under load, chats' second turns.

    python -m infinicore_infer.tools.bench_serving --url http://127.0.0.1:8000 --users 1 4 16 64
    python -m infinicore_infer.tools.bench_serving --url ... --rate 0.5 1 --json run.json
    python -m infinicore_infer.tools.bench_serving --plot both.png --compare ours.json theirs.json

``--users``: so many users, each asking again as soon as it has its answer. ``--rate``: requests
come at random times, so many a second on average (Poisson), whether or not earlier ones are
answered. Prompts are random words and differ from the first word on, so no prefix cache helps.
``--second-turn``: the time to the first token of a long chat's first and second answer, on an idle
server. Greedy; set the server to the model of your choice: any that is compared must be the same.

Times are the client's: TTFT is from sending a request to its first text, ITL from one piece of text
to the next. Needs nothing but Python; ``--plot`` needs matplotlib.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infinicore_infer.arguments import need_matplotlib, positive_count
from infinicore_infer.tools.serving_client import Answer, ServingClient

_WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or "
    "had an they which one you were all her she there would their we him been has when who will no "
    "more if out so up said what its about than into them can only other time new some could these"
).split()


@dataclasses.dataclass(slots=True)
class Row:
    """One load; times in milliseconds, rates in tokens per second of all users together.

    Attributes:
        load: "4 users", or "2 /s".
        requests: How many were answered.
        errors: How many failed.
        prompt: Median prompt tokens as the server counts; 0: it does not say.
        tok_s: Generated tokens per second.
        ttft_p50: Time to the first text, of half of the requests.
        itl_p50: Time between two pieces of text, of half of them.
        total_p50: Duration of half of the requests.
    """

    load: str
    requests: int
    errors: int
    prompt: float
    tok_s: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    itl_p50: float
    itl_p90: float
    itl_p99: float
    total_p50: float


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed; 0: none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


def summarize(load: str, answers: Sequence[Answer], seconds: float) -> Row:
    """Return a load's figures."""
    good = [answer for answer in answers if not answer.error]
    first = [1000 * answer.times[0] for answer in good if answer.times]
    between = [
        1000 * (later - earlier)
        for answer in good
        for earlier, later in itertools.pairwise(answer.times)
    ]
    prompts = [float((answer.usage or {}).get("prompt_tokens", 0)) for answer in good]
    return Row(
        load=load,
        requests=len(good),
        errors=len(answers) - len(good),
        prompt=percentile(prompts, 0.5),
        tok_s=sum(answer.tokens for answer in good) / seconds,
        ttft_p50=percentile(first, 0.5),
        ttft_p90=percentile(first, 0.9),
        ttft_p99=percentile(first, 0.99),
        itl_p50=percentile(between, 0.5),
        itl_p90=percentile(between, 0.9),
        itl_p99=percentile(between, 0.99),
        total_p50=percentile([1000 * answer.seconds for answer in good], 0.5),
    )


class Load:
    """Requests of one shape to one server."""

    def __init__(self, client: ServingClient, args: argparse.Namespace) -> None:
        self._client = client
        self._model = args.model or client.model()
        self._words, self._generate = args.prompt, args.generate
        self._rng = random.Random(args.seed)
        self._lock = threading.Lock()
        self._answers: list[Answer] = []

    def text(self, words: int) -> str:
        """Return words that no earlier text began with."""
        with self._lock:
            picked = self._rng.choices(_WORDS, k=words)
            return " ".join([f"{self._rng.getrandbits(64):x}", *picked])

    def ask(self) -> Answer:
        """Send one request."""
        body = {"model": self._model, "prompt": self.text(self._words), "temperature": 0}
        answer = self._client.stream("/v1/completions", {**body, "max_tokens": self._generate})
        with self._lock:
            self._answers.append(answer)
        return answer

    def _run(self, threads: Sequence[threading.Thread], pause: Callable[[], float]) -> float:
        """Start threads, wait for all; return the seconds."""
        self._answers = []
        begin = due = time.perf_counter()
        for thread in threads:
            time.sleep(max(0.0, due - time.perf_counter()))
            thread.start()
            due += pause()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begin

    def closed(self, users: int, requests: int) -> Row:
        """Let users ask, each again after its answer."""
        left = iter(range(requests))

        def user() -> None:
            while True:
                with self._lock:
                    if next(left, None) is None:
                        return
                self.ask()

        threads = [threading.Thread(target=user, daemon=True) for _ in range(users)]
        seconds = self._run(threads, lambda: 0.0)
        return summarize(f"{users} users", self._answers, seconds)

    def poisson(self, rate: float, requests: int) -> Row:
        """Let requests come at random times."""
        threads = [threading.Thread(target=self.ask, daemon=True) for _ in range(requests)]
        seconds = self._run(threads, lambda: self._rng.expovariate(rate))
        return summarize(f"{rate:g} /s", self._answers, seconds)

    def second_turn(self, words: int) -> dict[str, float | int | str]:
        """Chat twice: a long question, then a short one after its answer."""
        messages = [{"role": "user", "content": self.text(words)}]
        body = {"model": self._model, "temperature": 0, "max_tokens": 4}

        def turn() -> Answer:
            return self._client.stream("/v1/chat/completions", {**body, "messages": messages})

        first = turn()
        messages += [
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "And then?"},
        ]
        second = turn()
        error = first.error or second.error
        if not error and not (first.times and second.times):
            error = "an answer was empty"
        if error:
            return {"error": error}
        return {
            "prompt": int((first.usage or {}).get("prompt_tokens", 0)),
            "first_ttft": 1000 * first.times[0],
            "second_ttft": 1000 * second.times[0],
            "ratio": first.times[0] / second.times[0],
            "cached": second.cached_tokens,
        }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all loads.

    Raises:
        OSError: The server does not answer.
    """
    load = Load(ServingClient(args.url, args.api_key), args)
    warm_up = load.ask()
    if warm_up.error:
        raise OSError(f"the first request failed: {warm_up.error}")
    rows = []
    for users in args.users:
        rows.append(load.closed(users, max(args.requests, users * args.rounds)))
        print(f"{rows[-1].load}: {rows[-1].tok_s:.1f} tok/s", file=sys.stderr)
    for rate in args.rate:
        rows.append(load.poisson(rate, args.requests))
        print(f"{rows[-1].load}: {rows[-1].tok_s:.1f} tok/s", file=sys.stderr)
    return {
        "label": args.label or args.url,
        "date": time.strftime("%Y-%m-%d"),
        "generate": args.generate,
        "rows": [dataclasses.asdict(row) for row in rows],
        "second_turn": [load.second_turn(words) for words in args.second_turn],
    }


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(run: dict[str, Any]) -> str:
    """Return a run as tables."""
    lines = [f"{run['label']}, {run['date']}; milliseconds"]
    tables: list[list[dict[str, Any]]] = [run["rows"], run["second_turn"]]
    for table in tables:
        # Failed ones have other columns.
        for names, rows in itertools.groupby(table, key=tuple):
            lines += ["", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
            lines += [f"| {' | '.join(map(_cell, row.values()))} |" for row in rows]
    return "\n".join(lines)


def plot(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Draw throughput against latency, a line per run, a point per load."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, name, title in (
        (axes[0], "ttft_p50", "time to first text, median, ms"),
        (axes[1], "itl_p50", "between two pieces of text, median, ms"),
    ):
        for run in runs:
            rows = [row for row in run["rows"] if row["requests"]]
            speeds = [row["tok_s"] for row in rows]
            axis.plot(speeds, [row[name] for row in rows], marker="o", label=run["label"])
            for row, speed in zip(rows, speeds, strict=True):
                axis.annotate(row["load"], (speed, row[name]), fontsize=7)
        axis.set_xlabel("generated tokens per second, all users")
        axis.set_ylabel(title)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m infinicore_infer.tools.bench_serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--url", metavar="URL", help="address of the server, with or without /v1")
    add(
        "--model",
        metavar="NAME",
        help="model that is asked for (default: the first of /v1/models)",
    )
    add("--api-key", metavar="KEY", help="key that the server wants (default: none is sent)")
    add(
        "--label",
        metavar="TEXT",
        help="name of the run in tables and pictures (default: the address)",
    )
    add(
        "--users",
        nargs="*",
        type=positive_count,
        default=[1, 4, 16, 64],
        metavar="N",
        help="numbers of users who ask at once, each again after its answer (default: 1 4 16 64)",
    )
    add(
        "--rate",
        nargs="*",
        type=_rate,
        default=[],
        metavar="R",
        help="rates, in requests a second, at which requests come at random (default: none)",
    )
    add(
        "--rounds",
        type=positive_count,
        default=2,
        metavar="N",
        help="least number of requests of each user (default: %(default)s)",
    )
    add(
        "--requests",
        type=positive_count,
        default=8,
        metavar="N",
        help="least number of requests of each load (default: %(default)s)",
    )
    add(
        "--prompt",
        type=positive_count,
        default=128,
        metavar="N",
        help="length of a prompt in words (default: %(default)s)",
    )
    add(
        "--generate",
        type=positive_count,
        default=64,
        metavar="N",
        help="longest answer in tokens (default: %(default)s)",
    )
    add(
        "--second-turn",
        nargs="*",
        type=positive_count,
        default=[],
        metavar="N",
        help="lengths in words of first questions whose chats go on for a second (default: none)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the random words, the same for servers that are compared "
        "(default: %(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="file that the figures are also written to")
    add(
        "--plot",
        type=Path,
        metavar="PNG",
        help="picture that the figures are also drawn into, with matplotlib",
    )
    add(
        "--compare",
        nargs="*",
        type=Path,
        default=[],
        metavar="FILE",
        help="files of earlier runs, written by --json, that are drawn too",
    )
    args = parser.parse_args(argv)
    if not args.url and not (args.plot and args.compare):
        parser.error("give --url, or --plot with --compare")
    if args.plot:
        need_matplotlib(parser)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit status: 1 if a request failed."""
    args = parse_arguments(argv)
    runs = []
    failed = False
    try:
        if args.url:
            run = measure(args)
            failed = any(row["errors"] for row in run["rows"])
            failed = failed or any("error" in row for row in run["second_turn"])
            runs.append(run)
            print(markdown(run))
            if args.json:
                args.json.write_text(json.dumps(run, indent=1))
        runs += [json.loads(path.read_text()) for path in args.compare]
        if args.plot:
            plot(args.plot, runs)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
