"""Loads a server for a while and watches its memory: nothing may grow, nothing may be lost.

    python test/bench/soak.py --minutes 10 --users 16 [-- --model-path DIR ...]

Starts scripts/launch_server.py, then users who ask for texts and chats of mixed lengths, leave in
the middle, or send garbage. Greedy answers must equal those to the same requests sent alone. Every
10 seconds it prints resident memory, KV memory and counters; at the end a summary and, once the
server is idle, what it still holds. The exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
from infinicore_infer.tools.serving_client import ServingClient  # noqa: E402

_TEXTS = ["Tell me more. ", "What is the capital of France? ", "One, two, three. "]


def greedy_requests(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns paths and bodies whose answers are known before the load starts."""
    rng = random.Random(5)
    result: list[tuple[str, dict[str, Any]]] = []
    for i in range(count):
        text = rng.choice(_TEXTS) * rng.choice([0, 1, 5, 20]) + f"What is {i} + {i % 7}?"
        body: dict[str, Any] = {"temperature": 0, "max_tokens": rng.choice([4, 16, 64])}
        if i % 2:
            result.append(("/v1/completions", {**body, "prompt": text}))
        else:
            messages = [{"role": "user", "content": text}]
            result.append(("/v1/chat/completions", {**body, "messages": messages}))
    return result


class Soak:
    """The load and what it saw."""

    def __init__(self, client: ServingClient, seed: int) -> None:
        self.client = client
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.stop = threading.Event()
        self._seed = seed
        self._lock = threading.Lock()
        self._known = [
            (path, body, client.stream(path, body).text) for path, body in greedy_requests(40)
        ]

    def _note(self, kind: str, problem: str = "") -> None:
        with self._lock:
            self.counts[kind] += 1
            if problem:
                self.counts["problems"] += 1
                self.problems = [*self.problems[:20], problem]

    def answers(self) -> int:
        """Returns how many requests have ended."""
        return sum(self.counts[kind] for kind in ("greedy", "random", "leave", "garbage"))

    def user(self, number: int) -> None:
        """One user, until told to stop."""
        rng = random.Random(f"{self._seed}/{number}")
        while not self.stop.is_set():
            kind = rng.choice(["greedy"] * 4 + ["random", "leave", "garbage"])
            path, body, expected = rng.choice(self._known)
            if kind == "greedy":
                answer = self.client.stream(path, body)
                wrong = answer.error or ("" if answer.text == expected else "another answer")
                self._note(kind, wrong and f"{path} {body}: {wrong}")
                with self._lock:
                    self.counts["tokens"] += answer.tokens
            elif kind == "random":
                changed = {**body, "temperature": 1.0, "seed": rng.randrange(2**32), "n": 2}
                self._note(kind, self.client.stream(path, changed).error)
            elif kind == "leave":
                self.client.stream(
                    path, {**body, "ignore_eos": True, "max_tokens": 500}, rng.choice([0, 1, 5, 20])
                )
                self._note(kind)
            else:
                error = self.client.stream(path, {**body, "temperature": rng.choice(["", -1, []])})
                self._note(kind, "" if error.error.startswith("status 400") else str(error))

    def metrics(self) -> dict[str, float]:
        """Returns the server's numbers."""
        text = self.client.get("/metrics")[1].decode()
        pairs = re.findall(r"^infinicore_infer_(\w+) ([\d.e+-]+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in pairs}


def probe(url: str, stop: Any, results: Any) -> None:
    """Asks /health ten times a second, in a process of its own, which no other thread delays."""
    client = ServingClient(url, timeout=60)
    health: list[float] = []
    # How late this process itself wakes up: what a busy machine adds to every figure.
    late: list[float] = []
    wrong: list[str] = []
    due = time.perf_counter() + 0.1
    while not stop.wait(0.1):
        begin = time.perf_counter()
        late.append(begin - due)
        try:
            status = client.get("/health")[0]
            if status != 200:
                wrong.append(f"health: status {status}")
        except OSError as error:
            wrong.append(f"health: {error}")
        health.append(time.perf_counter() - begin)
        due = time.perf_counter() + 0.1
    results.put((health, late, wrong))


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Returns milliseconds."""
    ordered = sorted(seconds)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    last = len(ordered) - 1
    return {
        name: round(1000 * ordered[min(int(share * len(ordered)), last)], 2)
        for name, share in shares.items()
    }


def resident(pid: int) -> float:
    """Returns a process's resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else 0.0


def launch(arguments: list[str], log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts the server and waits until it is ready."""
    command = [sys.executable, str(ROOT / "scripts" / "launch_server.py"), "--port", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *arguments], stdout=file, stderr=file)
    for _ in range(1200):
        found = re.search(r"running on (http://[\d.]+:\d+)", log.read_text("utf-8", "replace"))
        if found and ServingClient(found[1]).get("/health")[0] == 200:
            return process, found[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"the server did not start: {log.read_text('utf-8', 'replace')[-2000:]}")


def run(args: argparse.Namespace, process: subprocess.Popen[bytes], url: str) -> int:
    """Loads the server; returns the exit status."""
    soak = Soak(ServingClient(url, timeout=120), args.seed)
    threads = [threading.Thread(target=soak.user, args=(i,)) for i in range(args.users)]
    context = multiprocessing.get_context("spawn")
    probe_stop, results = context.Event(), context.Queue()
    prober = context.Process(target=probe, args=(url, probe_stop, results))
    prober.start()
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    print("| s | resident MiB | KV MiB | prefix MiB | running | waiting | answers | problems |")
    print("|---|---|---|---|---|---|---|---|")
    memory: list[float] = []
    while process.poll() is None and time.monotonic() - begin < args.minutes * 60:
        time.sleep(min(10, args.minutes * 60))
        numbers = soak.metrics()
        memory.append(resident(process.pid))
        kv, prefix = numbers["kv_used_bytes"] / 2**20, numbers["prefix_cache_bytes"] / 2**20
        cells = [f"{time.monotonic() - begin:.0f}", f"{memory[-1]:.1f}", f"{kv:.1f}"]
        cells += [f"{prefix:.1f}", f"{numbers['requests_running']:.0f}"]
        cells += [f"{numbers['requests_waiting']:.0f}", str(soak.answers())]
        cells.append(str(soak.counts["problems"]))
        print("| " + " | ".join(cells) + " |", flush=True)
    probe_stop.set()
    health, late, wrong = results.get(timeout=120)
    prober.join()
    soak.stop.set()
    for thread in threads:
        thread.join()
    soak.problems += wrong
    soak.counts["problems"] += len(wrong)
    time.sleep(1)
    numbers = soak.metrics()
    left = numbers["kv_used_bytes"] - numbers["prefix_cache_bytes"]
    summary = {
        **soak.counts,
        "tok_s": soak.counts["tokens"] / (time.monotonic() - begin),
        "health_ms": percentiles(health),
        "probe_late_ms": percentiles(late),
        # The first quarter fills the prefix cache and the allocator's arenas.
        "resident_mib": {"quarter": memory[len(memory) // 4], "end": memory[-1]},
        "kv_bytes_left": left,
        "running_left": numbers["requests_running"] + numbers["requests_waiting"],
        "failed_steps": numbers["failed_steps_total"],
        "preemptions": numbers["preemptions_total"],
    }
    print(json.dumps(summary, indent=1))
    for problem in soak.problems:
        print(f"problem: {problem}")
    if left or summary["running_left"] or summary["failed_steps"]:
        return 1
    return 1 if soak.problems else 0


def main() -> int:
    """Runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("server", nargs="*", help="after --: arguments of launch_server.py")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = launch(args.server, Path(folder) / "log")
        try:
            return run(args, process, url)
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    raise SystemExit(main())
