"""What runs on the fake accelerator, one function per process.

``python -m infinicore.cases NAME JSON`` calls the function of that name with the arguments. The
result is printed as JSON in the last line. Every case ends with the fake's own check: no rule
broken, nothing left allocated.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
from infinicore.fake import Fake
from infinicore_infer.native.model import KVCache, StepRequest, sampling_struct
from libinfinicore_infer import Qwen3Error
from qwen3 import Qwen3ForCausalLM

Logits = npt.NDArray[np.float32]
GREEDY = sampling_struct()
COPIES = ("h2d", "d2h", "d2d", "pageable", "hidden")
CASES: dict[str, Callable[..., Any]] = {}
FAILURES = (MemoryError, NotImplementedError, Qwen3Error)


def case(function: Callable[..., Any]) -> Callable[..., Any]:
    CASES[function.__name__] = function
    return function


def open_model(folder: str, device: str = "nvidia", **options: Any) -> Qwen3ForCausalLM:
    # Devices round no activations beside what their dtype does.
    activations = "f32" if device == "cpu" else "auto"
    return Qwen3ForCausalLM(folder, device=device, activations=activations, threads=1, **options)


def some_tokens(n: int, dvoc: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, dvoc - 2, n)]


def forward(
    model: Qwen3ForCausalLM, requests: Sequence[tuple[KVCache, int, Sequence[int]]]
) -> list[Logits]:
    logits = model.native.forward(
        [StepRequest(cache, tokens, position) for cache, position, tokens in requests]
    )
    return np.split(logits, np.cumsum([len(tokens) for _, _, tokens in requests])[:-1])


def greedy(
    model: Qwen3ForCausalLM, requests: Sequence[tuple[KVCache, int, Sequence[int]]]
) -> list[int]:
    steps = [StepRequest(cache, tokens, position, GREEDY) for cache, position, tokens in requests]
    return [result.token for result in model.native.step(steps)]


def generate(model: Qwen3ForCausalLM, prompts: Sequence[Sequence[int]], n: int) -> list[list[int]]:
    """Greedy continuations of several prompts, all in one batch."""
    caches = [model.create_kv_cache() for _ in prompts]
    try:
        rows = [(c, 0, p) for c, p in zip(caches, prompts, strict=True)]
        tokens = [[t] for t in greedy(model, rows)]
        for _ in range(n - 1):
            step = greedy(model, [(c, len(c), t[-1:]) for c, t in zip(caches, tokens, strict=True)])
            for sequence, token in zip(tokens, step, strict=True):
                sequence.append(token)
        return tokens
    finally:
        for cache in caches:
            cache.close()


def mixed(model: Qwen3ForCausalLM) -> list[Logits]:
    """Logits of prefills, chunks and decode rows in one call, of shared and of rewound caches."""
    dvoc = model.meta.dvoc
    first, second, third = (model.create_kv_cache() for _ in range(3))
    with closing(first), closing(second), closing(third):
        results = forward(model, [(first, 0, some_tokens(21, dvoc, 1))])
        results += forward(
            model,
            [
                (second, 0, some_tokens(40, dvoc, 2)),
                (first, 21, some_tokens(1, dvoc, 3)),
                (third, 0, some_tokens(1, dvoc, 4)),
            ],
        )
        with closing(model.duplicate_kv_cache(second, 35)) as copy:  # in the middle of a block
            results += forward(
                model,
                [
                    (copy, 35, some_tokens(3, dvoc, 5)),
                    (second, 40, some_tokens(1, dvoc, 6)),
                    (third, 1, some_tokens(290 if model.context_length > 300 else 60, dvoc, 7)),
                    (first, 10, some_tokens(2, dvoc, 8)),
                ],
            )
        results += forward(model, [(c, len(c), some_tokens(1, dvoc, 9)) for c in (second, third)])
    return results


def distance(actual: Logits, expected: Logits) -> float:
    """The largest difference in units of the expected logits' standard deviation; NaN counts."""
    difference = np.abs(actual - expected)
    return float("inf") if np.isnan(difference).any() else float(difference.max() / expected.std())


@case
def parity(
    fake: Fake,
    folder: str,
    device: str = "nvidia",
    dtypes: Sequence[str | None] = (None,),
    **options: Any,
) -> list[list[float]]:
    """How far the mixed batches' logits are from the CPU backend's, for each dtype."""
    with open_model(folder, "cpu", kv_dtype="f32") as model:
        expected = mixed(model)
    distances = []
    for dtype in dtypes:
        with open_model(folder, device, dtype=dtype, **options) as model:
            actual = mixed(model)
            info = model.native.build_info()
            assert (info["backend"], info["device"]) == ("infinicore", f"{device}:0"), info
        fake.check()
        distances.append([distance(a, e) for a, e in zip(actual, expected, strict=True)])
    return distances


@case
def info(fake: Fake, folder: str, device: str = "nvidia") -> dict[str, str]:
    with open_model(folder, device) as model:
        return model.native.build_info()


@case
def memory_of_prompts(
    fake: Fake, folder: str, device: str, lengths: Sequence[int], **options: Any
) -> list[int]:
    """The highest use of device memory that prompts lead to, without the caches' own."""
    sizes = []
    for ntok in lengths:
        fake.reset()
        with open_model(folder, device, **options) as model:
            with closing(model.create_kv_cache()) as cache:
                greedy(model, [(cache, 0, some_tokens(ntok, model.meta.dvoc))])
                sizes.append(fake.get("peak.device") - model.stats()["kv_used_bytes"])
    return sizes


@case
def arena(fake: Fake, folder: str, **options: Any) -> dict[str, int]:
    """Bytes of a model without its first cache, of a block, and of what the first one brings."""
    with open_model(folder, **options) as model, closing(model.create_kv_cache()) as cache:
        before = fake.get("bytes.device")
        greedy(model, [(cache, 0, [1, 2, 3])])
        block = model.stats()["kv_used_bytes"]
        return {
            "without": before,
            "block": block,
            "arena": (fake.get("bytes.device") - before) // block * block,
        }


@case
def long_prompt(fake: Fake, folder: str, ntok: int, device: str = "nvidia") -> float:
    with open_model(folder, "cpu", kv_dtype="f32") as model:
        tokens = some_tokens(ntok, model.meta.dvoc)
        with closing(model.create_kv_cache()) as cache:
            expected = forward(model, [(cache, 0, tokens)])[0]
    with open_model(folder, device) as model, closing(model.create_kv_cache()) as cache:
        return distance(forward(model, [(cache, 0, tokens)])[0], expected)


@case
def text(
    fake: Fake, folder: str, device: str, prompt: str, dtype: str | None, **options: Any
) -> str:
    with open_model(folder, device, dtype=dtype, **options) as model:
        assert model.native.step_tokens == (512 if device == "cpu" else 1024)
        return str(model.generate(prompt, max_steps=40, temperature=0.0))


@case
def batch_is_alone(fake: Fake, folder: str, **options: Any) -> None:
    """A request's tokens do not depend on what else is in the batch."""
    with open_model(folder, **options) as model:
        prompts = [some_tokens(n, model.meta.dvoc, n) for n in (5, 1, 33, 17)]
        together = generate(model, prompts, 6)
        assert together == [generate(model, [prompt], 6)[0] for prompt in prompts]


@case
def refusal(fake: Fake, folder: str, device: str, **options: Any) -> dict[str, Any]:
    """The exception that creating a model raises."""
    try:
        open_model(folder, device, **options)
    except FAILURES as error:
        name = getattr(error, "status_name", "")
        return {"kind": type(error).__name__, "name": name, "text": str(error)}
    raise AssertionError("the model was created")


@case
def works(fake: Fake, folder: str, device: str = "nvidia", **options: Any) -> dict[str, int]:
    """Tokens come out; returns memory sizes."""
    with open_model(folder, device, **options) as model:
        assert len(generate(model, [[1, 2, 3]], 3)[0]) == 3
        stats = model.stats()
        return {"device": fake.get("bytes.device"), "weights": stats["weight_bytes"]}


# ------------------------------------------------------------------ failures


def scenario(model: Qwen3ForCausalLM) -> list[list[int]]:
    """Two prompts, one of them in chunks, decoding, and a shared block that is copied."""
    dvoc = model.meta.dvoc
    tokens = generate(model, [some_tokens(3, dvoc, 1), some_tokens(20, dvoc, 2)], 2)
    with closing(model.create_kv_cache()) as cache:
        greedy(model, [(cache, 0, some_tokens(6, dvoc, 3))])
        with closing(model.duplicate_kv_cache(cache)) as copy:
            requests = [(cache, 6, [1]), (copy, 6, [2])]
            tokens.append(greedy(model, requests))
            # The failed call may be repeated: nothing of it stays.
            assert len(cache) == len(copy) == 7
    return tokens


def attempt(function: Callable[[], Any]) -> tuple[Any, str]:
    """The result of a function, or None and what it raised."""
    try:
        return function(), ""
    except FAILURES as error:
        return None, f"{type(error).__name__}: {error}"


@case
def failing(
    fake: Fake,
    folder: str,
    kind: str,
    at_most: int,
    max_step_tokens: int = 16,
    ndev: int = 1,
    step: int = 1,
) -> dict[str, Any]:
    """Injects a failure at call 1, 1 + step, ... of a kind until a run does not come to it.

    Returns:
        How many failures there were in which phase, and their texts. "swallowed" ones were not told
        by an exception; in the phase "close" none can be.
    """

    def create() -> Qwen3ForCausalLM:
        return open_model(folder, max_step_tokens=max_step_tokens, ndev=ndev)

    with create() as model:
        expected = scenario(model)
    fake.check()
    phases: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    wrong: list[str] = []

    def expect(condition: bool, problem: str) -> None:
        if not condition:
            wrong.append(f"{kind} {n}: {problem}")

    for n in range(1, at_most, step):
        fake.reset()
        fake.fail(kind, n)
        phase = "create"
        model, text = attempt(create)
        if model is not None:
            tokens, text = attempt(lambda model=model: scenario(model))
            phase = "step" if text else "swallowed" if fake.get("hits") else "close"
            if text:
                again, problem = attempt(lambda model=model: scenario(model))
                expect(again == expected, f"after {text}: {again} {problem}")
                expect(model.stats()["ncaches"] == 0, "a cache is left")
            else:
                expect(tokens == expected, f"{phase}: wrong tokens {tokens}")
            model.close()
        hit = fake.get("hits") == 1
        expect(hit or not text, f"out of the blue: {text}")
        expect(fake.violations() == [], f"{phase}: {text}: {fake.violations()}")
        # Without its device nothing can be freed.
        expect(fake.live() == {} or "set_device" in kind, f"{phase}: {text}: left {fake.live()}")
        if not hit:
            assert not wrong, "\n".join([f"{len(wrong)} problems:", *wrong[:5]])
            return {"n": sum(phases.values()), "phases": phases, "texts": texts}
        phases[phase] += 1
        texts[f"{phase}: {text}"] += 1
    raise AssertionError(f"{kind}: still failing at the {at_most}th call")


@case
def cut_link(fake: Fake, folder: str, device: int, n: int) -> list[str]:
    """A device's sums fail for good from the nth on; what three steps then say."""
    with open_model(folder, ndev=2) as model:
        scenario(model)
        fake.fail(f"link@{device}", n)
        texts = [attempt(lambda: scenario(model))[1] for _ in range(3)]
    assert fake.violations() == []
    return texts


@case
def losing(fake: Fake, folder: str, step: int, ndev: int = 1) -> int:
    """The devices go away for good at call 1, 1 + step, ...: exceptions, never a crash."""
    n = 1
    while True:
        fake.reset()
        fake.fail("lost", n)
        try:
            with open_model(folder, max_step_tokens=16, ndev=ndev) as model:
                for _ in range(2):
                    try:
                        scenario(model)
                    except FAILURES as error:
                        assert str(error).strip()
        except FAILURES as error:
            assert str(error).strip()
        hit = fake.get("hits")
        fake.fail("lost", 0)
        assert fake.violations() == []
        if not hit:
            return n
        n += step


@case
def memory_limit(fake: Fake, folder: str) -> dict[str, Any]:
    """The memory is enough for the weights: caches are what fails, and the model survives."""
    with open_model(folder) as model:
        prompt, caches, texts = some_tokens(3, model.meta.dvoc), [], []
        for _ in range(1000):
            cache = model.create_kv_cache()
            caches.append(cache)
            try:
                greedy(model, [(cache, 0, prompt)])
            except FAILURES as error:
                texts.append(f"{type(error).__name__}: {error}")
                break
        assert len(texts) == 1 and len(caches[-1]) == 0
        token = greedy(model, [(caches[0], 3, [1])])  # a cache that has its block goes on
        while caches:
            caches.pop().close()
        with closing(model.create_kv_cache()) as cache:
            greedy(model, [(cache, 0, prompt)])
            assert greedy(model, [(cache, 3, [1])]) == token
        return {"text": texts[0], "peak": fake.get("peak.device")}


# ------------------------------------------------------------------ threads and devices


def in_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@case
def threads(fake: Fake, folder: str) -> None:
    """Created on one thread, run on others, destroyed on a third; none keeps the device."""
    import ctypes

    def device() -> tuple[int, int]:
        kind, index = ctypes.c_int(-1), ctypes.c_int(-1)
        fake.lib.infinirtGetDevice(ctypes.byref(kind), ctypes.byref(index))
        return kind.value, index.value

    def create() -> tuple[Any, Any]:
        return open_model(folder, dev_ids=[1]), device()

    def run() -> tuple[Any, Any]:
        return scenario(model), device()

    def close() -> tuple[int, int]:
        model.close()
        return device()

    model, after_create = in_thread(create)
    first, after_run = in_thread(run)
    assert run()[0] == first
    assert [after_create, after_run, device(), in_thread(close)] == [(0, 0)] * 4
    # A thread that has another device set keeps that.
    fake.lib.infinirtSetDevice(1, 1)
    with open_model(folder, dev_ids=[0]) as other:
        assert scenario(other) == first
        assert device() == (1, 1)


@case
def two_models(fake: Fake, folder: str) -> None:
    """Models on two devices, and two on one, run from several threads at once."""
    models = [open_model(folder, dev_ids=[i]) for i in (0, 1, 1)]
    expected = scenario(models[0])
    results: list[Any] = []
    pool = [
        threading.Thread(target=lambda m=model: results.append(scenario(m)))
        for model in models
        for _ in range(2)
    ]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    assert results == [expected] * 6
    for model in models:
        model.close()


# ------------------------------------------------------------------ launches


@case
def launches(
    fake: Fake,
    folder: str,
    batch: int,
    ntok: int,
    past: int | Sequence[int],
    ndev: int = 1,
    before: int = 1,
) -> dict[str, Any]:
    """What one step of ``batch`` requests of ``ntok`` tokens after ``past`` others calls.

    ``before``: how many equal steps there have been.
    """
    lengths = [past] * batch if isinstance(past, int) else past
    with open_model(folder, ndev=ndev) as model:
        dvoc = model.meta.dvoc
        caches = [model.create_kv_cache() for _ in range(batch)]
        for i, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
            if length:
                greedy(model, [(cache, 0, some_tokens(length, dvoc, i))])
        requests = [
            (cache, length, some_tokens(ntok, dvoc, 9))
            for cache, length in zip(caches, lengths, strict=True)
        ]
        for _ in range(before):
            greedy(model, requests)  # blocks and descriptors exist after this
        fake.reset()
        greedy(model, requests)
        calls = Counter(fake.calls())
        result = {
            "launches": dict(fake.launches()),
            "sums": calls["infinicclAllReduce"],
            "graphs": fake.get("graphs.launched"),
            "in_graphs": fake.get("graphs.nodes"),
            "megabytes": fake.get("bytes.launched") / 1e6,
            "syncs": sum(n for name, n in calls.items() if "Synchronize" in name),
            "mallocs": calls["infinirtMalloc"] + calls["infinirtMallocHost"],
            "created": sum(n for name, n in calls.items() if "Create" in name),
            **{kind: fake.get(f"copies.{kind}") for kind in COPIES},
        }
        for cache in caches:
            cache.close()
        return result


@case
def graphs_and_eager(fake: Fake, folder: str, steps: int) -> dict[str, Any]:
    """Logits of decode steps in batches that change, with graphs and without them."""

    def decode() -> list[Logits]:
        with open_model(folder) as model:
            dvoc = model.meta.dvoc
            caches = [model.create_kv_cache() for _ in range(3)]
            for i, (cache, length) in enumerate(zip(caches, (250, 3, 17), strict=True)):
                greedy(model, [(cache, 0, some_tokens(length, dvoc, i))])
            rows = []
            for step in range(steps):
                for batch in (caches, caches[: 1 + step % 2]):
                    requests = [
                        (cache, len(cache), some_tokens(1, dvoc, 100 * step + i))
                        for i, cache in enumerate(batch)
                    ]
                    shapes[len(batch), max(-(-(len(cache) + 1) // 256) for cache in batch)] += 1
                    rows += forward(model, requests)
            for cache in caches:
                cache.close()
            return rows

    shapes: Counter[tuple[int, int]] = Counter()
    with_graphs = decode()
    again = sum(count > 1 for count in shapes.values())
    fake.check()
    counts = {name: fake.get(f"graphs.{name}") for name in ("launched", "captured")}
    hits = fake.get("hits")
    os.environ["QWEN3_INFINICORE_AVOID"] = "graphs"
    eager = decode()
    return {
        "equal": all(np.array_equal(a, b) for a, b in zip(with_graphs, eager, strict=True)),
        "graphs": counts["launched"],
        "captured": counts["captured"],
        "kinds": again,
        "hits": hits,
    }


@case
def long_step(fake: Fake, folder: str, ntok: int, max_step_tokens: int) -> dict[str, int]:
    """What a prompt that takes several steps calls, in the second of two caches."""
    with open_model(folder, max_step_tokens=max_step_tokens) as model:
        for _ in range(2):
            with closing(model.create_kv_cache()) as cache:
                fake.reset()
                greedy(model, [(cache, 0, some_tokens(ntok, model.meta.dvoc))])
                calls = Counter(fake.calls())
        return {
            "steps": calls["infiniopRoPE"] // model.meta.nlayer,
            "syncs": sum(n for name, n in calls.items() if "Synchronize" in name),
            "mallocs": calls["infinirtMalloc"] + calls["infinirtMallocHost"],
            "pageable": fake.get("copies.pageable"),
            "d2h": fake.get("copies.d2h"),
        }


@case
def descriptors(fake: Fake, folder: str, batch: int, steps: int) -> list[int]:
    """Operator descriptors created by each of a number of decode steps."""
    created = []
    with open_model(folder) as model:
        caches = [model.create_kv_cache() for _ in range(batch)]
        greedy(model, [(cache, 0, [1, 2, 3]) for cache in caches])
        for _ in range(steps):
            fake.reset()
            greedy(model, [(cache, len(cache), [4]) for cache in caches])
            created.append(
                sum(name.startswith("infiniopCreate") for name in fake.calls())
                - fake.get("calls.infiniopCreateTensorDescriptor")
            )
        for cache in caches:
            cache.close()
    return created


def main() -> None:
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    fake = Fake()
    result = CASES[name](fake, **arguments)
    # Those may leave memory behind.
    if name not in ("losing", "cut_link") and "set_device" not in arguments.get("kind", ""):
        fake.check()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
