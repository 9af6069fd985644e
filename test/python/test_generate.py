"""Qwen3ForCausalLM: generation, batches, streams, stops, seeds, caches, perplexity, lifetimes."""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from libinfinicore_infer import Qwen3Error, Qwen3OutOfKVError
from python.helpers import copy_folder, edit_json, make_text_model
from qwen3 import DeviceType, GenerationResult, Qwen3ForCausalLM, SamplingParams
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM as Reference

PROMPTS = ["the cat sat", "hello there, how", "你好", "a", "I am fine. 😀 the mat"]


@pytest.fixture(scope="module")
def reference(text_folder: Path) -> Reference:
    # On matrices this small, threads only wait for each other.
    torch.set_num_threads(1)
    return Reference.from_pretrained(text_folder, dtype=torch.float32).eval()


def reference_greedy(reference: Reference, prompt: list[int], steps: int) -> list[int]:
    """Greedy continuation, one full forward per token: no cache, no generation machinery."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            logits = reference(torch.tensor([tokens])).logits[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] in reference.generation_config.eos_token_id:
                break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_equals_transformers(
    model: Qwen3ForCausalLM, reference: Reference, prompt: str
) -> None:
    expected = reference_greedy(reference, model.encode(prompt), 20)
    result = model.generate(prompt, 20)
    assert result.tokens == expected
    ends = result.tokens[-1] in model.meta.end_tokens
    assert result.finish_reason == ("stop" if ends else "length")
    assert result.text == str(result) == model.tokenizer.decode(expected)
    assert result.prompt_tokens == len(model.encode(prompt)) and result.reused_tokens == 0
    assert result.ttft > 0 and result.prefill_tps > 0 and result.decode_tps > 0
    assert model.generate(model.encode(prompt), max_steps=20).tokens == expected


def test_forward_equals_transformers(model: Qwen3ForCausalLM, reference: Reference) -> None:
    requests = [model.encode(prompt) for prompt in PROMPTS]
    logits = model.forward(requests)
    assert logits.dtype == np.float32 and logits.shape == (sum(map(len, requests)), model.meta.dvoc)
    with torch.no_grad():
        expected = torch.cat([reference(torch.tensor([r])).logits[0] for r in requests]).numpy()
    # Float32 on both sides, sums of a few hundred terms in another order.
    np.testing.assert_allclose(logits, expected, atol=2e-3 * np.abs(expected).max())
    single = np.concatenate([model.forward(request) for request in requests])
    np.testing.assert_array_equal(single, logits)
    np.testing.assert_array_equal(model.forward(np.array(requests[0])), logits[: len(requests[0])])


def test_forward_with_caches_and_positions(model: Qwen3ForCausalLM) -> None:
    tokens = model.encode("the cat sat on the mat, hello")
    whole = model.forward(tokens)
    with model.create_kv_cache() as cache:
        parts = [model.forward(tokens[:5], [cache]), model.forward(tokens[5:], [cache])]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert len(cache) == len(cache.tokens) == len(tokens) and cache.tokens == tokens
        rewound = model.forward(tokens[3:6], [cache], [3])
        np.testing.assert_array_equal(rewound, whole[3:6])
        assert len(cache) == 6 and cache.tokens == tokens[:6]


@pytest.mark.parametrize("max_batch", [1, 2, 16])
def test_batch_equals_single_runs(model: Qwen3ForCausalLM, max_batch: int) -> None:
    prompts = [*PROMPTS, "the mat " * 30, "x" * 80]
    single = [model.generate(prompt, 12) for prompt in prompts]
    seen: dict[int, str] = {}
    batch = model.generate_batch(
        prompts,
        12,
        max_batch=max_batch,
        stream=lambda i, text: seen.update({i: seen.get(i, "") + text}),
    )
    assert [r.tokens for r in batch] == [r.tokens for r in single]
    assert [r.text for r in batch] == [r.text for r in single]
    assert [seen.get(i, "") for i in range(len(prompts))] == [r.text for r in batch]
    assert [r.finish_reason for r in batch] == [r.finish_reason for r in single]


def test_sampled_batch_equals_single_runs_with_those_seeds(model: Qwen3ForCausalLM) -> None:
    settings: dict[str, Any] = dict(temperature=1.3, top_k=50, presence_penalty=0.5)
    batch = model.generate_batch(["the cat"] * 4, 15, seed=100, **settings)
    assert [r.seed for r in batch] == [100, 101, 102, 103]
    assert len({tuple(r.tokens) for r in batch}) > 1
    for i, result in enumerate(batch):
        assert model.generate("the cat", 15, seed=100 + i, **settings).tokens == result.tokens


def test_batch_gets_by_with_little_kv_memory(text_folder: Path) -> None:
    """Sequences give way when memory is short, and their answers stay the same."""
    prompts = [[i + 1] * 40 for i in range(6)]
    with Qwen3ForCausalLM(text_folder, threads=2) as roomy:
        expected = [r.tokens for r in roomy.generate_batch(prompts, 60, ignore_eos=True)]
        block = roomy.stats()["kv_block_bytes"]
        tokens_per_block = roomy.stats()["kv_block_tokens"]
    blocks = 2 * -(-100 // tokens_per_block) + 1
    with Qwen3ForCausalLM(text_folder, threads=2, kv_limit_bytes=blocks * block) as tight:
        results = tight.generate_batch(prompts, 60, ignore_eos=True)
        assert [r.tokens for r in results] == expected
        assert tight.stats()["ncaches"] == 0 and tight.stats()["kv_used_bytes"] == 0
    with Qwen3ForCausalLM(text_folder, threads=2, kv_limit_bytes=block) as hopeless:
        with pytest.raises(Qwen3OutOfKVError):
            hopeless.generate_batch([[5] * (3 * tokens_per_block)] * 2, 5)
        assert hopeless.stats()["ncaches"] == 0
        short = hopeless.generate([5, 6], 4, ignore_eos=True)
        assert len(short.tokens) == 4


def test_stream(model: Qwen3ForCausalLM) -> None:
    whole = model.generate("hello", 20, temperature=1.0, seed=3)
    stream = model.stream_generate("hello", 20, temperature=1.0, seed=3)
    pieces = list(stream)
    assert [piece.token for piece in pieces] == whole.tokens
    assert "".join(piece.text for piece in pieces) == whole.text == stream.result.text
    reasons = [piece.finish_reason for piece in pieces]
    assert reasons == [None] * (len(pieces) - 1) + [whole.finish_reason]
    texts: list[str] = []
    model.generate("hello", 20, temperature=1.0, seed=3, stream=texts.append)
    assert "".join(texts) == whole.text


def test_abandoned_streams_leave_nothing(model: Qwen3ForCausalLM) -> None:
    with model.stream_generate("hello", 20) as stream:
        next(stream)
    assert stream.result.finish_reason == "cancelled" and len(stream.result.tokens) == 1
    never_started = model.stream_generate("hello", 20)
    never_started.close()
    forgotten = model.stream_generate("hello", 20)
    next(forgotten)
    del forgotten
    gc.collect()

    def boom(text: str) -> None:
        raise RuntimeError("no thanks")

    with pytest.raises(RuntimeError, match="no thanks"):
        model.generate("hello", 20, temperature=1.0, seed=1, stream=boom)
    with pytest.raises(RuntimeError, match="no thanks"):
        model.generate_batch(PROMPTS, 20, stream=lambda i, text: boom(text))


def test_stop_strings_across_tokens(model: Qwen3ForCausalLM) -> None:
    """Every substring of an answer, used as a stop string, cuts it exactly there."""
    settings: dict[str, Any] = dict(temperature=1.0, seed=11, ignore_eos=True)
    whole = model.generate("the cat", 30, **settings).text
    assert len(whole) > 10
    for begin in range(1, min(len(whole) - 4, 25), 3):
        stop = whole[begin : begin + 4]
        texts: list[str] = []
        result = model.generate("the cat", 30, stop=[stop], stream=texts.append, **settings)
        assert result.text == whole[: whole.index(stop)] == "".join(texts)
        assert (result.finish_reason, result.stop_string) == ("stop", stop)
    unused = model.generate("the cat", 30, stop=["never said"], **settings)
    assert unused.text == whole and unused.finish_reason == "length"


def test_end_tokens(model: Qwen3ForCausalLM) -> None:
    end = model.meta.end_tokens[1]
    forced = model.generate("hello", 9, allowed_tokens=[end])
    assert (forced.tokens, forced.text, forced.finish_reason) == ([end], "", "stop")
    ignored = model.generate("hello", 9, allowed_tokens=[end], ignore_eos=True)
    assert (ignored.tokens, ignored.finish_reason) == ([end] * 9, "length")


def test_seeds(model: Qwen3ForCausalLM) -> None:
    def run(seed: int | None) -> GenerationResult:
        return model.generate("hello", 24, temperature=1.5, seed=seed)

    assert run(5).tokens == run(5).tokens
    assert len({tuple(run(seed).tokens) for seed in range(6)}) > 1
    drawn = run(None)
    assert run(drawn.seed).tokens == drawn.tokens
    assert run(None).seed != drawn.seed
    assert model.generate("hello", 5, seed=2**64 - 1).seed == 2**64 - 1


def test_sampling_stays_inside_top_k(model: Qwen3ForCausalLM) -> None:
    prompt = model.encode("hello")
    order = np.argsort(-model.forward(prompt)[-1], kind="stable")
    got = {model.generate(prompt, 1, 5.0, 3, seed=seed).tokens[0] for seed in range(60)}
    assert got == set(order[:3].tolist())
    for greedy in (dict(temperature=0.0), dict(temperature=5.0, topk=1)):
        assert model.generate(prompt, 1, **greedy).tokens == [order[0]]  # type: ignore[arg-type]
    banned = model.generate(prompt, 1, logit_bias={int(order[0]): -math.inf})
    assert banned.tokens == [order[1]]


def test_logprobs(model: Qwen3ForCausalLM) -> None:
    prompt = model.encode("the cat")
    result = model.generate(prompt, 3, logprobs=4, ignore_eos=True)
    assert result.logprobs is not None and len(result.logprobs) == 3
    logits = torch.tensor(model.forward([*prompt, *result.tokens])[len(prompt) - 1 : -1])
    expected = torch.log_softmax(logits.double(), -1)
    for row, got in zip(expected, result.logprobs, strict=True):
        values, tokens = row.topk(4)
        assert [token for token, _ in got.top] == tokens.tolist()
        np.testing.assert_allclose([v for _, v in got.top], values.numpy(), atol=1e-4)
        assert got.logprob == pytest.approx(float(row[got.token]), abs=1e-4)
    assert model.generate(prompt, 2).logprobs is None
    none_listed = model.generate(prompt, 2, logprobs=0, ignore_eos=True).logprobs
    assert none_listed is not None and none_listed[0].top == []


def test_generation_config_is_the_default(text_folder: Path, tmp_path: Path) -> None:
    folder = copy_folder(text_folder, tmp_path)
    edit_json(
        folder / "generation_config.json",
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        max_new_tokens=7,
    )
    with Qwen3ForCausalLM(folder, threads=1) as model:
        params = model.sampling_params()
        assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.95)
        assert params.max_steps == 7 and not params.greedy
        assert model.sampling_params(temperature=0).greedy
        assert model.sampling_params(topk=1).greedy
        assert model.sampling_params(topp=0.5, max_steps=3).top_p == 0.5
        assert len(model.generate("hello", ignore_eos=True).tokens) == 7
    greedy = SamplingParams.from_config({"temperature": 0.6, "top_k": 20})
    assert greedy.greedy
    assert SamplingParams.from_config({}, top_p=0.5).temperature == 1.0
    assert SamplingParams.from_config({}).greedy


@pytest.mark.parametrize(
    "bad",
    [
        dict(temperature=-0.1),
        dict(temperature=math.nan),
        dict(temperature="hot"),
        pytest.param(dict(temperature=10**400), id="huge"),
        dict(top_k=-2),
        pytest.param(dict(top_k=10**5000), id="unspeakable"),
        dict(topk=1.5),
        dict(topp=-0.1),
        dict(topp=1.01),
        dict(topp="0.5"),
        dict(min_p=1.01),
        dict(repetition_penalty=0.0),
        dict(presence_penalty=2.5),
        dict(frequency_penalty=-3),
        dict(seed=-1),
        dict(seed=2**64),
        dict(max_steps=0),
        dict(max_steps=-2),
        dict(stop=[""]),
        dict(stop=[3]),
        dict(logprobs=129),
        dict(logit_bias={1: math.nan}),
        pytest.param(dict(logit_bias={1: 10**400}), id="huge bias"),
        dict(logit_bias={1: "x"}),
        dict(logit_bias={10**6: 1.0}),
        dict(allowed_tokens=[-1]),
    ],
)
def test_bad_settings(model: Qwen3ForCausalLM, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        model.generate("hello", **{"max_steps": 2, **bad})


def test_limits_of_settings(model: Qwen3ForCausalLM) -> None:
    """They mean what the engines mean that users know them from."""
    hot = dict(max_steps=12, temperature=5.0, ignore_eos=True)
    likeliest = model.generate("hello", 12, temperature=0, ignore_eos=True).tokens
    for top_p in (0, 0.0, 1e-50):
        assert model.sampling_params(top_p=top_p).greedy
        for seed in range(3):
            assert model.generate("hello", top_p=top_p, seed=seed, **hot).tokens == likeliest
    assert model.generate("hello", min_p=1, seed=1, **hot).tokens == likeliest
    everything = model.generate("hello", top_k=0, seed=1, **hot).tokens
    assert model.generate("hello", top_k=-1, seed=1, **hot).tokens == everything != likeliest
    full = model.generate("hello", -1, temperature=0, ignore_eos=True)
    assert full.tokens == model.generate("hello", None, temperature=0, ignore_eos=True).tokens
    assert len(full.tokens) == model.context_length - full.prompt_tokens + 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1),
        pytest.param("temperature", 10**400, id="huge"),
        ("temperature", math.nan),
        ("temperature", "0.6"),
        ("top_p", 1.5),
        ("top_k", -2),
        ("top_k", 20.5),
        ("min_p", True),
        ("repetition_penalty", 0),
        ("repetition_penalty", [1.1]),
        ("max_new_tokens", 0),
        ("max_new_tokens", "7"),
    ],
)
def test_bad_generation_config(
    text_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: Any
) -> None:
    """Loading names file and key; what transformers does not look at is only logged."""
    folder = copy_folder(text_folder, tmp_path)
    file = folder / "generation_config.json"
    edit_json(file, do_sample=True, **{key: value})
    with pytest.raises(ValueError) as error:
        Qwen3ForCausalLM(folder, threads=1)
    assert f"{file}: {key!r} must be " in str(error.value) and len(str(error.value)) < 400
    edit_json(file, do_sample=False)
    if key in ("repetition_penalty", "max_new_tokens"):
        with pytest.raises(ValueError, match="must be "):
            Qwen3ForCausalLM(folder, threads=1)
        return
    with Qwen3ForCausalLM(folder, threads=1) as model:
        assert f"{file}: {key!r} must be " in caplog.text
        assert model.sampling_params(max_steps=2).greedy
        # Where it counts after all, it is the file that is blamed.
        if key != "top_k":
            with pytest.raises(ValueError, match=rf"generation_config.json: '{key}' must be "):
                model.sampling_params(top_k=5)


def test_unlimited_generation_config(text_folder: Path, tmp_path: Path) -> None:
    folder = copy_folder(text_folder, tmp_path)
    file = folder / "generation_config.json"
    edit_json(file, do_sample=True, top_k=-1, top_p=0, min_p=1, max_new_tokens=-1)
    with Qwen3ForCausalLM(folder, threads=1) as model:
        params = model.sampling_params()
        assert (params.top_k, params.max_steps, params.greedy) == (0, None, True)
    edit_json(file, top_k=10**12, max_new_tokens=10**12)
    with Qwen3ForCausalLM(folder, threads=1) as model:
        assert len(model.generate("hello", 3, ignore_eos=True).tokens) == 3


def test_bad_arguments(model: Qwen3ForCausalLM) -> None:
    with pytest.raises(TypeError):
        model.generate("hello", 2, temprature=1.0)
    for empty in ("", []):
        with pytest.raises(ValueError, match="prompt is empty"):
            model.generate(empty, 2)
    for tokens in ([-1], [model.meta.dvoc], [0.5]):
        with pytest.raises(ValueError, match="token"):
            model.generate(tokens, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompt 1: the prompt is empty"):
        model.generate_batch(["a", ""], 2)
    with pytest.raises(ValueError, match="caches"):
        with model.create_kv_cache() as cache:
            model.forward([[1], [2]], [cache])
    assert model.generate_batch([], 2) == []


def test_context_limits(text_folder: Path) -> None:
    with Qwen3ForCausalLM(text_folder, max_tokens=24, threads=1) as model:
        assert model.context_length == 24
        with pytest.raises(ValueError, match="25 tokens, the context holds 24"):
            model.generate([7] * 25, 2)
        full = model.generate([7] * 24, ignore_eos=True)
        assert len(full.tokens) == 1 and full.finish_reason == "length"
        result = model.generate([7] * 20, ignore_eos=True)
        assert len(result.tokens) == 5 and result.finish_reason == "length"
    with pytest.raises(ValueError, match="max_tokens"):
        Qwen3ForCausalLM(text_folder, max_tokens=10**6)


def test_chat(model: Qwen3ForCausalLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    for thinking in (True, False):
        prompt = model.tokenizer.apply_chat_template(
            messages, variables={"enable_thinking": thinking}
        )
        expected = model.generate(prompt, 8)
        assert model.chat(messages, None, thinking, max_steps=8).tokens == expected.tokens
    with pytest.raises(ValueError, match="role"):
        model.chat([{"role": "x", "content": "y"}], max_steps=2)


def test_prefix_reuse_changes_nothing(model: Qwen3ForCausalLM) -> None:
    messages = [{"role": "user", "content": "hello there"}]
    with model.create_kv_cache() as cache:
        for turn in range(3):
            prompt = model.chat_prompt(messages)
            fresh = model.generate(prompt, 10)
            reused = model.generate(prompt, 10, cache=cache)
            assert reused.tokens == fresh.tokens
            assert (reused.reused_tokens > 10) == (turn > 0)
            # The newest token was chosen but never fed.
            assert cache.tokens == [*model.encode(prompt), *reused.tokens[:-1]]
            assert len(cache) == len(cache.tokens)
            messages.append({"role": "assistant", "content": reused.text})
            messages.append({"role": "user", "content": f"and {turn}?"})
        again = model.generate(prompt, 10, cache=cache)
        assert again.tokens == fresh.tokens
        assert again.reused_tokens == len(model.encode(prompt)) - 1
        other = model.generate("something else", 10, cache=cache)
        assert other.tokens == model.generate("something else", 10).tokens


def test_caches(model: Qwen3ForCausalLM) -> None:
    tokens = model.encode("the cat sat on the mat")
    cache = model.create_kv_cache()
    assert len(cache) == 0 and cache and cache.tokens == []
    whole = model.forward(tokens, [cache])
    copy = model.duplicate_kv_cache(cache)
    short = model.duplicate_kv_cache(cache, 3)
    assert (len(copy), len(short)) == (len(tokens), 3) and short.tokens == tokens[:3]
    np.testing.assert_array_equal(model.forward(tokens[3:], [short]), whole[3:])
    model.forward([1, 2, 3], [copy])
    np.testing.assert_array_equal(
        model.forward(tokens[-1:], [cache], [len(tokens) - 1]), whole[-1:]
    )
    with pytest.raises(ValueError, match="the cache holds"):
        model.duplicate_kv_cache(cache, len(tokens) + 1)
    with pytest.raises(ValueError, match="must not be negative"):
        model.duplicate_kv_cache(cache, -1)
    with pytest.raises(ValueError):
        model.forward([[1], [2]], [cache, cache])
    with pytest.raises(ValueError):
        model.forward([1], [cache], [len(cache) + 1])
    model.drop_kv_cache(cache)
    model.drop_kv_cache(cache)
    with pytest.raises(ValueError, match="cache is closed"):
        len(cache)
    with pytest.raises(ValueError, match="cache is closed"):
        model.forward([1], [cache], [0])
    assert model.stats()["ncaches"] == 2
    # Garbage collection gives the memory back as well, at the next call.
    del copy, short
    gc.collect()
    assert model.stats()["ncaches"] == 0 and model.stats()["kv_used_bytes"] == 0


def test_caches_and_models_go_in_any_order(text_folder: Path) -> None:
    one = Qwen3ForCausalLM(text_folder, threads=1)
    two = Qwen3ForCausalLM(text_folder, threads=1)
    cache = one.create_kv_cache()
    with pytest.raises(ValueError, match="another model"):
        two.forward([1], [cache])
    with pytest.raises(ValueError, match="another model"):
        two.duplicate_kv_cache(cache)
    one.close()
    one.close()
    one.cancel()
    with pytest.raises(ValueError, match="closed"):
        len(cache)
    for call in (one.create_kv_cache, one.stats, lambda: one.generate([1], 1)):
        with pytest.raises(ValueError, match="model is closed"):
            call()
    cache.close()
    other = two.create_kv_cache()
    two.close()
    other.close()
    # A cache keeps its model alive.
    lonely = Qwen3ForCausalLM(text_folder, threads=1).create_kv_cache()
    gc.collect()
    assert len(lonely) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_files_are_let_go(tied: bool, tmp_path: Path) -> None:
    """All is packed or copied, so nothing that happens to the file can disturb the model."""
    folder = make_checkpoint(CheckpointSpec("mapped", tied=tied), tmp_path)

    def mapped() -> bool:
        return str(folder) in Path("/proc/self/maps").read_text()

    with Qwen3ForCausalLM(folder, threads=1) as model:
        assert not mapped()
        assert len(model.generate([1], 3, ignore_eos=True).tokens) == 3
    assert not mapped()


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def test_loading_and_dropping_does_not_leak(tmp_path: Path) -> None:
    folder = make_checkpoint(
        CheckpointSpec("mid", d=256, di=2048, dvoc=4096, nlayer=4, dtype="bf16"), tmp_path
    )

    def once() -> None:
        with Qwen3ForCausalLM(folder, threads=2) as model:
            model.generate([1, 2, 3], 3)

    for _ in range(3):
        once()
    gc.collect()
    before = _resident_mib()
    for _ in range(12):
        once()
    gc.collect()
    # One model is 25 MiB: a leak of each would be 300.
    assert _resident_mib() - before < 50


def test_cancel_from_another_thread(model: Qwen3ForCausalLM) -> None:
    event = threading.Event()
    stream = model.stream_generate("hello", 400, cancel=event, ignore_eos=True)
    next(stream)
    event.set()
    assert list(stream) == [] and stream.result.finish_reason == "cancelled"

    # Cancel lands wherever the other thread is; asked often enough, a step hears it.
    results: list[GenerationResult] = []
    worker = threading.Thread(
        target=lambda: results.append(model.generate([3] * 500, ignore_eos=True))
    )
    worker.start()
    deadline = time.monotonic() + 20
    while worker.is_alive() and time.monotonic() < deadline:
        model.cancel()
        time.sleep(0.0005)
    worker.join(20)
    assert results and results[0].finish_reason in ("cancelled", "length")
    assert model.generate("hello", 3).tokens


def test_threads_share_a_model(model: Qwen3ForCausalLM) -> None:
    expected = [model.generate(prompt, 15).tokens for prompt in PROMPTS]
    results: dict[int, list[int]] = {}

    def work(i: int) -> None:
        results[i] = model.generate(PROMPTS[i], 15).tokens

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [results.get(i) for i in range(len(PROMPTS))] == expected


def test_perplexity(model: Qwen3ForCausalLM, reference: Reference) -> None:
    texts = ["the cat sat on the mat. " * 12, "hello there, how are you?"]
    nll, count = 0.0, 0
    for text in texts:
        tokens = torch.tensor([model.encode(text)])
        with torch.no_grad():
            logits = reference(tokens).logits[0, :-1].double()
        nll += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += tokens.shape[1] - 1
    result = model.perplexity(texts)
    assert result.tokens == count
    assert result.nll == pytest.approx(nll, rel=1e-4)
    assert float(result) == pytest.approx(math.exp(nll / count), rel=1e-3)
    ids = model.encode(texts[0])
    assert model.perplexity(ids).nll == model.perplexity(texts[0]).nll
    parts = [ids[i : i + 30] for i in range(0, len(ids), 30)]
    windows = model.perplexity(ids, window=30)
    assert windows.nll == pytest.approx(sum(model.perplexity(p).nll for p in parts if len(p) > 1))
    for bad in ([5], []):
        with pytest.raises(ValueError):
            model.perplexity(bad)
    with pytest.raises(ValueError, match="window"):
        model.perplexity(ids, window=1)


def test_penalties(model: Qwen3ForCausalLM) -> None:
    """Greedy answers under penalties, step by step from the logits and the definition."""
    prompt = model.encode("a a a the cat")
    repetition, presence, frequency = 1.3, 0.4, 0.7
    tokens = list(prompt)
    for _ in range(25):
        logits = model.forward(tokens)[-1].astype(np.float64)
        for token in set(tokens):
            value = logits[token]
            logits[token] = value / repetition if value > 0 else value * repetition
        generated = tokens[len(prompt) :]
        for token in set(generated):
            logits[token] -= presence + frequency * generated.count(token)
        tokens.append(int(logits.argmax()))
    settings: dict[str, Any] = dict(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    result = model.generate(prompt, 25, ignore_eos=True, **settings)
    assert result.tokens == tokens[len(prompt) :]
    assert result.tokens != model.generate(prompt, 25, ignore_eos=True).tokens


def test_stats(model: Qwen3ForCausalLM) -> None:
    stats = model.stats()
    assert stats["weight_bytes"] > 0 and stats["nthreads"] == 2
    info = model.build_info()
    assert info["version"] and int(info["threads"]) == 2


def test_models_without_tokenizer_take_token_ids(tmp_path: Path) -> None:
    folder = make_checkpoint(CheckpointSpec("bare", dtype="bf16", tied=False), tmp_path)
    with Qwen3ForCausalLM(folder, DeviceType.DEVICE_TYPE_CPU, threads=1) as model:
        result = model.generate([1, 2, 3], 5)
        assert len(result.tokens) == 5 and result.text == ""
        with pytest.raises(ValueError, match=r"no tokenizer\.json"):
            model.generate("text", 5)
        with pytest.raises(ValueError, match="stop strings"):
            model.generate([1], 5, stop=["x"])


def test_weight_and_cache_types(text_folder: Path) -> None:
    with Qwen3ForCausalLM(text_folder, threads=1) as model:
        tokens = model.encode("the cat sat on the mat")
        exact = model.forward(tokens)
        size = model.stats()["weight_bytes"]
    with Qwen3ForCausalLM(text_folder, threads=1, dtype="bf16", kv_dtype="f32") as model:
        rounded = model.forward(tokens)
        assert model.stats()["weight_bytes"] < 0.7 * size
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.1


def test_sharded_and_yarn_checkpoints_load(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    folder = make_text_model(
        tmp_path, dctx=64, rope=rope, max_shard_size="60KB", tied=False, bias=True
    )
    reference = Reference.from_pretrained(folder, dtype=torch.float32).eval()
    with Qwen3ForCausalLM(folder, threads=2) as model:
        assert model.context_length == 256
        tokens = (model.encode("the cat sat on the mat. ") * 30)[:200]
        with torch.no_grad():
            expected = reference(torch.tensor([tokens])).logits[0].numpy()
        got = model.forward(tokens)
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())


def test_constructor_errors(text_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        Qwen3ForCausalLM(tmp_path / "none")
    with pytest.raises(ValueError, match="known devices"):
        Qwen3ForCausalLM(text_folder, "toaster")
    with pytest.raises(ValueError, match="ndev"):
        Qwen3ForCausalLM(text_folder, ndev=0)
    with pytest.raises(ValueError, match="dev_ids"):
        Qwen3ForCausalLM(text_folder, dev_ids=[0, 1])
    with pytest.raises(ValueError, match="unknown dtype"):
        Qwen3ForCausalLM(text_folder, dtype="int3")
    for bad in (
        dict(threads=-1),
        dict(threads=2**32 + 1),
        dict(kv_limit_bytes=-1),
        dict(max_step_tokens=2**32 + 512),
        dict(seed=-1),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Qwen3ForCausalLM(text_folder, **bad)  # type: ignore[arg-type]
    with pytest.raises(Qwen3Error, match="device"):
        Qwen3ForCausalLM(text_folder, device_type=DeviceType.DEVICE_TYPE_KUNLUN)


def test_ctrl_c_while_loading(text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Qwen3ForCausalLM, "_load_tokenizer", lambda _: os.kill(os.getpid(), signal.SIGINT)
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Qwen3ForCausalLM(text_folder, threads=1)
        assert "create-model" not in [thread.name for thread in threading.enumerate()]
    finally:
        signal.signal(signal.SIGINT, before)


def test_bad_weight_values_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(CheckpointSpec("nan"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="BAD_WEIGHTS"):
        Qwen3ForCausalLM(folder, threads=1)


@pytest.mark.parametrize("as_array", [False, True])
def test_token_ids_that_are_none(model: Qwen3ForCausalLM, as_array: bool) -> None:
    def given(*tokens: Any) -> Any:
        return np.array(tokens) if as_array else list(tokens)

    size = model.meta.dvoc
    for bad in (size, -1):
        message = f"token 1 is {bad}; ids of this model are from 0 to {size - 1}"
        with pytest.raises(ValueError, match=message):
            model.forward(given(1, bad))
    for kind, wrong in (("float64", 1.0), ("bool", True)):
        with pytest.raises(ValueError, match=f"must be whole numbers, got {kind}"):
            model.forward(given(wrong))
    last = model.forward([1, size - 1])
    assert np.array_equal(model.forward(np.array([1, size - 1], np.uint16)), last)
