"""One step of the checks and measurements on a device; run.sh runs them all.

    python test/gpu/measure.py decode --device nvidia --model 1.7b

Every step prints rows of one table: what, result, remark. A step ends with status 1 when a result
is wrong, and with 2 when there is no such device.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from device import DeviceBench, Runtime
from infinicore_infer.native.model import StepRequest
from infinicore_infer.paths import DEMO
from infinicore_infer.tools.doctor import device_counts
from libinfinicore_infer import Backend, DataType, DeviceType, Qwen3Error, load_library
from qwen3 import Qwen3ForCausalLM

# Largest difference between logits in standard deviations, from rounding activations to the dtype.
TOLERANCE = {"f32": 2e-3, "f16": 0.1, "bf16": 0.4}
AVOID = "QWEN3_INFINICORE_AVOID"
# Each way in which a step is leaner than it could be, and all of them.
LEAN = ("gemm_add", "silu_and_mul", "graphs", "gemm_add,silu_and_mul,graphs")
CPU = DeviceType.DEVICE_TYPE_CPU
Line = tuple[str, str, str]


def kind(args: argparse.Namespace) -> DeviceType:
    return DeviceType.parse(args.device)


def self_test(args: argparse.Namespace) -> Iterator[Line]:
    """Every operator against sums in double, in each dtype."""
    for dtype in TOLERANCE:
        with Qwen3ForCausalLM(DEMO, device=args.device, backend="infinicore", dtype=dtype) as model:
            info = model.native.build_info()
        remark = f"replaced: {info['avoids']}"
        yield f"self-test {dtype}", info["self_test"], remark


def text(args: argparse.Namespace) -> Iterator[Line]:
    """The demo model's greedy answer, against our CPU kernels'."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    for dtype in ("f32", "bf16"):
        answers = []
        for device, backend in ((args.device, "infinicore"), ("cpu", "cpu")):
            with Qwen3ForCausalLM(DEMO, device=device, backend=backend, dtype=dtype) as model:
                answers.append(model.chat(question, max_steps=40, temperature=0.0).tokens)
        same = answers[0] == answers[1]
        yield (
            f"text {dtype}",
            "equal to the CPU's" if same else "differs",
            "ok" if same else "WRONG",
        )


def parity(args: argparse.Namespace) -> Iterator[Line]:
    """Logits of a long prompt, whole and decoded, against our CPU kernels in float32.

    Beyond 1024 keys, where 0.1.0's causal softmax on CUDA goes wrong. run.sh turns TF32 off. Also
    the states that embeddings are made of, and the logits of a model with experts.
    """
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, 1000, args.prompt)]

    def results(bench: DeviceBench) -> dict[str, np.ndarray]:
        model = bench.model
        with closing(model), closing(model.create_kv_cache()) as cache:
            first = model.forward([StepRequest(cache, tokens, 0)])
            last = [model.forward([StepRequest(cache, [t], len(cache))]) for t in (5, 6, 7)]
            logits = np.concatenate([first[-64:], *last])
            if bench.meta.experts is not None:
                return {"experts": logits}
            with closing(model.create_kv_cache()) as other:
                states = model.embed([StepRequest(other, tokens, 0)])
            return {"parity": logits, "states": states}

    for name in ("tiny", "tiny-experts"):
        expected = results(DeviceBench(name, DataType.F32, CPU, [0], Backend.CPU))
        for dtype, tolerance in TOLERANCE.items():
            actual = results(DeviceBench(name, DataType.parse(dtype), kind(args), [0]))
            for what, wanted in expected.items():
                far = float(np.abs(actual[what] - wanted).max() / wanted.std())
                verdict = "ok" if far < tolerance else "WRONG"
                limit = f"limit {tolerance}"
                yield f"{what} {dtype}, {args.prompt} tokens", f"{far:.2g} sd, {limit}", verdict


def limits(args: argparse.Namespace) -> Iterator[Line]:
    """What shares are of."""
    runtime = Runtime(kind(args))
    yield "copy within the device", f"{runtime.bandwidth(args.copy << 20):.4g} GB/s", ""
    for dtype in (DataType.BF16, DataType.F16):
        peak = runtime.peak(args.gemm, dtype)
        yield f"product of {args.gemm} {dtype.name.lower()}", f"{peak / 1000:.4g} TFLOP/s", ""


def benches(args: argparse.Namespace) -> Iterator[tuple[str, DeviceBench]]:
    for shape in args.model:
        bench = DeviceBench(shape, DataType.BF16, kind(args), [0])
        with closing(bench.model):
            yield f"{shape} bf16", bench


def decode(args: argparse.Namespace) -> Iterator[Line]:
    bandwidth = Runtime(kind(args)).bandwidth(args.copy << 20)
    for title, bench in benches(args):
        yield f"{title}: loaded", f"{bench.load_seconds:.3g} s", ""
        for batch in args.batch:
            row = bench.run(batch, args.past, 0, args.steps, 2)
            share = f"{row.gb_s / bandwidth:.0%} of the copy; {bench.launches(batch, 1, args.past)}"
            yield f"{title}: decode of {batch} after {args.past}", f"{row.tok_s:.4g} tok/s", share


def prefill(args: argparse.Namespace) -> Iterator[Line]:
    peak = Runtime(kind(args)).peak(args.gemm, DataType.BF16)
    for title, bench in benches(args):
        for ntok in args.prefill:
            row = bench.run(1, 0, ntok, 0, 2)
            share = f"{row.gflop_s / peak:.0%} of the product; {bench.launches(1, ntok, 0)}"
            yield f"{title}: prefill of {ntok}", f"{row.tok_s:.4g} tok/s", share


def lean(args: argparse.Namespace) -> Iterator[Line]:
    """Decode with each lean way left out: how much it brings."""
    shape = args.model[0]
    for avoid in ("", *LEAN):
        os.environ[AVOID] = avoid
        bench = DeviceBench(shape, DataType.BF16, kind(args), [0])
        with closing(bench.model):
            row = bench.run(1, args.past, 0, args.steps, 2)
            remark = bench.launches(1, 1, args.past)
        name = f"without {avoid.replace(',', ', ')}" if avoid else "with all"
        yield f"{shape} bf16: decode of 1, {name}", f"{row.tok_s:.4g} tok/s", remark


def resident() -> int:
    """Bytes of host memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def leak(args: argparse.Namespace) -> Iterator[Line]:
    """Host memory per decode step: 0.1.0 leaked 32 bytes a product before it was mended."""
    bench = DeviceBench("tiny", DataType.BF16, kind(args), [0])
    with closing(bench.model), closing(bench.model.create_kv_cache()) as cache:
        sizes = []
        for _ in range(3):
            for _ in range(args.leak_steps):
                bench.step([cache], 1)
            sizes.append(resident())
    grown = (sizes[2] - sizes[1]) / args.leak_steps
    enough = args.leak_steps >= 1000  # a page now and then is no leak
    verdict = "too few steps" if not enough else "ok" if grown < 32 else "WRONG"
    yield "host memory per decode step", f"{grown:.3g} bytes", verdict


def devices(args: argparse.Namespace) -> Iterator[Line]:
    """Tensor parallelism over the first devices."""
    count = (
        2 if args.device == "cpu" else device_counts()[kind(args)]
    )  # on the CPU: ranks in memory
    if count == 1:
        yield "several devices", "not measured", "there is one"
    for ndev in (2, 4, 8):
        if ndev <= count:
            bench = DeviceBench(args.model[0], DataType.BF16, kind(args), list(range(ndev)))
            with closing(bench.model):
                speed = bench.run(1, args.past, 0, args.steps, 2).tok_s
            yield f"{args.model[0]} bf16 on {ndev} devices: decode of 1", f"{speed:.4g} tok/s", ""


STEPS: dict[str, Callable[[argparse.Namespace], Iterator[Line]]] = {
    "self-test": self_test,
    "text": text,
    "parity": parity,
    "limits": limits,
    "decode": decode,
    "prefill": prefill,
    "lean": lean,
    "leak": leak,
    "devices": devices,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--device", default="nvidia")
    parser.add_argument("--title", default="", help="what every row begins with")
    parser.add_argument("--model", nargs="+", default=["1.7b"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=1200, help="tokens of the parity check")
    parser.add_argument("--past", type=int, default=512, help="context of decode")
    parser.add_argument("--steps", type=int, default=64, help="decode steps")
    parser.add_argument("--leak-steps", type=int, default=2000)
    parser.add_argument("--prefill", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--copy", type=int, default=512, help="MiB of the copy")
    parser.add_argument("--gemm", type=int, default=8192, help="rows of the product")
    args = parser.parse_args(argv)
    load_library()
    if kind(args) != CPU and device_counts().get(kind(args), 0) == 0:
        print(f"InfiniCore sees no device {args.device}: qwen3-doctor says why", file=sys.stderr)
        return 2
    wrong = False
    try:
        for line in STEPS[args.step](args):
            wrong |= line[2] == "WRONG"
            print("| " + " | ".join((args.title + line[0], *line[1:])) + " |", flush=True)
    except (Qwen3Error, MemoryError, NotImplementedError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
