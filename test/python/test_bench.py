"""The benchmark's plan, tables and pictures, and the processes of the comparison; no speeds."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import libraries
import peers
import pytest
import transformers
from infinicore_infer.arguments import Precision
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.tools import bench
from infinicore_infer.tools.bench_models import official_config
from infinicore_infer.tools.machine_limits import Limits
from libinfinicore_infer import load_library
from peer_models import random_torch_model
from peer_openvino import check_whole
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from reference.random_moe import MoeSpec, moe_model, save_moe

FACTS = {
    "cpu": "a CPU",
    "commit": "abc",
    "date": "2026-01-01",
    "machine": {"bandwidth_gbps": 30.0, "fma_gflops": 200.0},
}


def row(**values: Any) -> dict[str, Any]:
    fields = dict(model="0.6b", dtype="int8", threads=2, test="tg16", batch=1, tok_s=40.0)
    shares = dict(spread=0.01, gb_s=26.0, of_bandwidth=0.87, gflop_s=48.0, of_peak=0.24)
    limits = dict(of_instruction=0.06, bandwidth=30.0, peak=200.0, instruction=800.0)
    return {**fields, **shares, **limits, **values}


def test_plan_of_all_combinations() -> None:
    args = bench.parse_arguments(["-p", "8", "-n", "2", "3", "-b", "1", "4", "-d", "0", "64"])
    plan = bench.planned(args, args.threads[0])
    assert len(plan) == len(set(plan)) == 2 * 2 * 3
    assert (4, 64, 0, 3) in plan and (1, 0, 8, 0) in plan


def test_plan_of_scaling() -> None:
    """One axis at a time; with fewer threads only what shows their effect."""
    command = "--scaling --threads 1 2 4 -p 8 32 -n 2 -b 1 2 4 -d 0 64"
    args = bench.parse_arguments(command.split())
    assert bench.planned(args, 1) == bench.planned(args, 2) == [(1, 0, 0, 2)]
    full = bench.planned(args, 4)
    assert len(full) == len(set(full)) == 3 + 1 + 2
    assert all((batch > 1) + (depth > 0) + (prompt > 0) <= 1 for batch, depth, prompt, _ in full)
    defaults = bench.parse_arguments(["--scaling", "--model", "1.7b"])
    assert max(defaults.batch) == 16 and max(defaults.depth) == 4096 and 1 in defaults.threads


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoints_are_measured(tied: bool, tmp_path: Path) -> None:
    """A decode step reads the head, and of input embeddings only if they are the same."""
    folder = make_checkpoint(CheckpointSpec("measured", tied=tied), tmp_path)
    args = argparse.Namespace(threads=1, kv_limit=64, device="cpu")
    measured = bench.Bench(str(folder), Precision("default"), args, None)
    table = measured.meta.dvoc * measured.meta.d * 4
    assert measured.unread_bytes == (0 if tied else table)
    row, stats = measured.run(1, 0, 0, 1, 1), measured.model.stats()
    read = stats["weight_bytes"] - (0 if tied else table)
    read += 2 * stats["kv_block_bytes"] // stats["kv_block_tokens"]
    assert row.gb_s / row.tok_s == pytest.approx(read / 1e9) and row.dtype == "default"
    measured.model.close()


@pytest.mark.parametrize(
    ("dtype", "on_disk"), [("int8", False), ("int4", False), ("bf16", False), ("bf16", True)]
)
def test_experts(dtype: str, on_disk: bool, tmp_path: Path) -> None:
    """Bytes of experts are what more of them add; a step reads those of the chosen ones."""
    weights, experts = [], []
    for count in (4, 8):
        spec = MoeSpec(d=64, dm=64, nlayer=5, nexperts=count, used=2)
        folder = save_moe(moe_model(spec), tmp_path / str(count), "bf16")
        args = argparse.Namespace(threads=1, kv_limit=64, device="cpu")
        args.experts_on_disk = tmp_path / f"{count}-packed" if on_disk else None
        measured = bench.Bench(str(folder), Precision(dtype), args, None)
        of_model = measured.model.stats()
        assert (of_model["expert_file_bytes"] > 0) == on_disk
        weights.append(of_model["weight_bytes"] + of_model["expert_file_bytes"])
        experts.append(measured.expert_bytes)
        row, stats = measured.run(1, 0, 0, 1, 1), measured.model.stats()
        read = weights[-1] - measured.unread_bytes - experts[-1] * (1 - 2 / count)
        read += 2 * stats["kv_block_bytes"] // stats["kv_block_tokens"]
        assert row.gb_s / row.tok_s == pytest.approx(read / 1e9)
        measured.model.close()
    assert weights[1] - weights[0] == experts[1] - experts[0]


def test_shape_with_experts() -> None:
    """The published number of parameters."""
    meta = Qwen3MetaFromConfig(official_config("30b-a3b"))
    assert meta.parameter_count == 30_532_122_624


@pytest.mark.parametrize(
    "command",
    ["-p 0", "-b 0", "--threads 0", "-r 0", "-d -1", "--model 9b", "--model /", "--dtype int3"],
)
def test_bad_arguments(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        bench.parse_arguments(command.split())
    assert error.value.code == 2 and "error:" in capsys.readouterr().err


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(), row(test="pp512", batch=2, tok_s=170.123)]
    bench.write_rows(rows, FACTS, "json")
    assert json.loads(capsys.readouterr().out)["rows"] == rows
    bench.write_rows(rows, FACTS, "csv")
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["test"] for line in table] == ["tg16", "pp512"] and table[1]["tok_s"] == "170"
    bench.write_rows(rows, FACTS, "md")
    text = capsys.readouterr().out
    assert "B = 30.0 GB/s, P = 200.0 GFLOP/s\n" in text and text.count("\n|") == 4


def test_limits() -> None:
    """The fastest instruction of each kind counts, and P where there is none."""
    plain = {"bandwidth_gbps": 30.0, "fma_gflops": 200.0}
    assert Limits.of(plain) == Limits(30, 200, 200, 200)
    wide = {**plain, "bf16_gflops": 400.0, "int8_gops": 800.0, "amx_bf16_gflops": 3200.0}
    assert Limits.of(wide) == Limits(30, 200, 3200, 800)
    assert Limits.of(plain).mean(Limits.of(wide)) == Limits(30, 200, 1700, 500)


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "matplotlib", reason="matplotlib, which only --plot needs, is not installed"
    )
    from infinicore_infer.tools import bench_plot

    rows = [row(model=model, threads=t) for model in ("0.6b", "1.7b") for t in (1, 2)]
    rows += [row(batch=4), row(test="tg16@d1024"), row(test="pp64"), row(test="pp512", dtype="f32")]
    bench_plot.draw(FACTS, rows, tmp_path / "new" / "all.png")
    # One test alone has nothing to show on most axes.
    bench_plot.draw(FACTS, [row()], tmp_path / "one.png")
    # Runtimes side by side; one is missing in one format.
    rows = [
        {"model": "0.6b", "format": dtype, "runtime": runtime, "prefill": 100.0, "decode": 10.0}
        for dtype, runtime in (("bf16", "ours"), ("bf16", "llama.cpp"), ("int8", "ours"))
    ]
    (tmp_path / "peers.json").write_text(json.dumps({**FACTS, "threads": 2, "rows": rows}))
    other = {**FACTS, "cpu": "another CPU", "threads": 2, "rows": rows[:1]}
    (tmp_path / "more.json").write_text(json.dumps(other))
    command = ["bench_plot.py", *(str(tmp_path / f"{name}.json") for name in ("peers", "more"))]
    command += ["-o", str(tmp_path / "peers.png")]
    monkeypatch.setattr(sys, "argv", command)
    assert bench_plot.main() == 0
    for path in ("new/all.png", "one.png", "peers.png"):
        assert (tmp_path / path).read_bytes().startswith(b"\x89PNG")


def test_peers_that_fail_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with peers.started("torch", sys.executable) as worker:
        answer = worker.ask(do="measure", prompt=1, generate=1, seed=0)
        assert "nothing is loaded" in answer["error"]
        answer = worker.ask(do="load", runtime="torch", config={}, dtype="int8")
        assert "bf16 only" in answer["error"]
        answer = worker.ask(do="load", runtime="openvino", config={}, dtype="bf12")
        assert "nothing like bf12" in answer["error"]
    with peers.started("torch", "/bin/false") as worker:
        assert "ended with status 1" in worker.ask(do="load")["error"]
    for bad in ("torch", "torch=/no/python", f"tensorflow={sys.executable}"):
        with pytest.raises(SystemExit):
            peers.main(["--peer", bad])
        assert "NAME=PYTHON" in capsys.readouterr().err


def test_layers_of_a_peer_have_weights_of_their_own() -> None:
    """Equal ones are kept once by some exports, and then read from cache."""
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, vocab_size=48)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    model = random_torch_model(transformers.Qwen3Config(**sizes, **heads))
    weights = [w.detach().float().numpy() for n, w in model.named_parameters() if "norm" not in n]
    assert len(weights) == len({w.tobytes() for w in weights}) == 3 * 7 + 2


def test_exports_that_share_layers_are_refused(tmp_path: Path) -> None:
    config = official_config("0.6b")
    with open(tmp_path / "openvino_model.bin", "wb") as file:
        file.truncate(595_984_384)  # Qwen3-0.6B has 596 million weights, those of norms left out
    check_whole(tmp_path, config, "int8")
    with pytest.raises(RuntimeError, match="595984384 bytes"):
        check_whole(tmp_path, config, "bf16")


def test_names_of_tests() -> None:
    assert libraries.Test.parse("pp512") == ("pp512", True, 512, 0, 1)
    assert libraries.Test.parse("tg8@d4096*3") == ("tg8@d4096*3", False, 8, 4096, 3)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{__file__} --test tg0", "'tg0' is no test; examples: pp512"),
        (f"{__file__} --test tg8*0", "'tg8*0' is no test"),
        (f"{__file__} --dtype int3", "int3"),
        (f"{__file__} --rounds 0", "--rounds and --starts take numbers from 1 on"),
        ("/no/library.so", "there is no file /no/library.so"),
    ],
)
def test_comparing_libraries_refuses(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        libraries.main(command.split())
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_comparing_a_library_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    library = str(load_library()._name)
    command = [library, library, "--dtype", "int8", "--test", "tg2*2", "pp3@d5"]
    libraries.main([*command, "--rounds", "2", "--starts", "1"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()][2:]
    assert [row[:2] for row in rows] == [
        ["int8", test] for test in ("tg2*2", "pp3@d5") for _ in "12"
    ]
    assert rows[0][3] == rows[2][3] == "1.000" and all(float(row[2]) > 0 for row in rows)
