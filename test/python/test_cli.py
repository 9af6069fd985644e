"""The command line, run as a user runs it: as a process, with pipes or in a terminal."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer import arguments, cli
from python.helpers import DEMO, SCRIPTS
from qwen3 import Qwen3ForCausalLM

COMMAND = [sys.executable, str(SCRIPTS / "qwen3.py")]


def run(
    *arguments: object, stdin: str | bytes = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=data,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.mark.parametrize(
    ("redirections", "code", "words"),
    [
        ("<&-", 2, "standard input is empty"),
        ("--prompt hello >&-", 1, "standard output is closed"),
        ("--prompt hello <&-", 0, ""),
        ("--prompt hello --stats 2>&-", 0, ""),
        ("--prompt hello >/dev/full", 1, "No space left"),
    ],
)
def test_closed_streams(redirections: str, code: int, words: str, text_folder: Path) -> None:
    command = [*COMMAND, "--model-path", str(text_folder), "--max-tokens", "3"]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirections}', "bash", *command],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert code or done.stdout.strip()


def test_a_locale_without_utf8_changes_no_prompt(text_folder: Path) -> None:
    model, text = ("--model-path", text_folder, "--max-tokens", 3, "--temperature", 0), "Déjà 北京"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    expected = run(*model, "--json", "--prompt", text)
    assert expected.returncode == 0, expected.stderr
    for done in (
        run(*model, "--json", "--prompt", text, **plain),
        run(*model, "--json", stdin=text, **plain),
    ):
        assert done.returncode == 0, done.stderr
        keys = ("tokens", "prompt_tokens")
        assert [json.loads(done.stdout)[key] for key in keys] == [
            json.loads(expected.stdout)[key] for key in keys
        ]


def test_folders_of_any_name(tmp_path: Path, text_folder: Path) -> None:
    for name in (b"new\nline", b"\xff", " \u00e9 ".encode()):
        folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        folder.symlink_to(text_folder)
        done = run("--model-path", folder, "--prompt", "hello", "--max-tokens", 3)
        assert done.returncode == 0, done.stderr


def test_prompt_is_answered_as_by_the_class(
    text_folder: Path, shared_model: Qwen3ForCausalLM
) -> None:
    done = run("--model-path", text_folder, "--prompt", "hello", "--max-tokens", 12)
    expected = shared_model.chat([{"role": "user", "content": "hello"}], max_steps=12)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip("\n") == expected.text.rstrip("\n")
    assert done.stdout.endswith("\n")


def test_ranks(text_folder: Path, shared_model: Qwen3ForCausalLM) -> None:
    """--ndev cuts the model over parts of the machine, where its heads allow that."""
    expected = shared_model.generate("the cat sat", 40, temperature=0)
    common = ("--model-path", text_folder, "--raw", "--prompt", "the cat sat", "--max-tokens", 40)
    done = run(*common, "--temperature", 0, "--json", "--device", "cpu", "--ndev", 2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == expected.tokens
    done = run(*common, "--ndev", 3)
    assert done.returncode == 1
    assert "ndev is 3: a model of nh 4 and nkvh 2 heads can be cut over 1, 2 or 4" in done.stderr


def test_lookup(text_folder: Path, shared_model: Qwen3ForCausalLM) -> None:
    prompt = "the cat sat on the mat. the cat sat on the mat. the cat sat"
    expected = shared_model.generate(prompt, 200, temperature=0)
    common = ("--model-path", text_folder, "--raw", "--prompt", prompt, "--max-tokens", 200)
    reports = {}
    for lookup in ((), ("--lookup",), ("--lookup", 5)):
        done = run(*common, "--temperature", 0, "--json", "--stats", *lookup)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["tokens"] == expected.tokens
        assert report["accepted_tokens"] <= report["drafted_tokens"]
        line = f"lookup {report['accepted_tokens']} of {report['drafted_tokens']} guesses right"
        # Whether guesses pay here is the machine's affair.
        assert (line in done.stderr) == (report["drafted_tokens"] > 0)
        reports[lookup] = report
    assert reports[()]["drafted_tokens"] == 0
    for bad in (-1, 65, "many"):
        assert run(*common, "--lookup", bad).returncode == 2


def test_json_with_all_settings(text_folder: Path, shared_model: Qwen3ForCausalLM) -> None:
    done = run(
        *("--model-path", text_folder, "--device", "cpu", "--ndev", 1, "--threads", 1),
        *("--prompt", "hello", "--system", "Be nice.", "--no-think", "--json", "--stats"),
        *("--max-tokens", 9, "--temperature", 0.9, "--top-k", 40, "--top-p", 0.9, "--min-p", 0.01),
        *("--seed", 7, "--presence-penalty", 0.5, "--repetition-penalty", 1.1),
        *("--frequency-penalty", 0.1, "--stop", "zzz", "--stop", "qqq", "--context", 200),
        *("--backend", "cpu", "--dtype", "f32"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    messages = [
        {"role": "system", "content": "Be nice."},
        {"role": "user", "content": "hello"},
    ]
    expected = shared_model.chat(
        messages,
        enable_thinking=False,
        max_steps=9,
        temperature=0.9,
        topk=40,
        topp=0.9,
        min_p=0.01,
        seed=7,
        presence_penalty=0.5,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        stop=["zzz", "qqq"],
    )
    assert report["tokens"] == expected.tokens and report["text"] == expected.text
    assert report["seed"] == 7 and report["finish_reason"] == expected.finish_reason
    assert report["prompt_tokens"] == expected.prompt_tokens
    assert report["completion_tokens"] == len(expected.tokens)
    for words in ("prompt", "TTFT", "prefill", "decode", "tok/s"):
        assert words in done.stderr


def test_piped_prompt_raw(text_folder: Path, shared_model: Qwen3ForCausalLM) -> None:
    arguments = ("--model-path", text_folder, "--raw", "--json", "--max-tokens", 6)
    for stdin in ("你好 the cat\n", "你好 the cat"):
        report = json.loads(run(*arguments, stdin=stdin).stdout)
        assert report["tokens"] == shared_model.generate("你好 the cat", 6).tokens


def test_default_is_the_demo_model() -> None:
    assert (DEMO / "config.json").is_file(), "the demo checkpoint is missing"
    done = run("--prompt", "Hello", "--max-tokens", 4, "--seed", 1)
    assert done.returncode == 0 and "demo model" in done.stderr and str(DEMO) in done.stderr
    quiet = run("--prompt", "Hello", "--max-tokens", 4, "--seed", 1, "--quiet")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "toaster"], "known devices: cpu, nvidia"),
        (["--dtype", "int3"], "unknown dtype"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "warm"], "temperature"),
        (["--top-p", "1.5"], "top_p"),
        (["--top-k", "-3"], "top_k"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--seed", "-1"], "seed"),
        (["--threads", "-1"], "threads"),
        (["--ndev", "0"], "ndev"),
        (["--context", "0"], "context"),
        (["--stop", ""], "stop"),
        (["--backend", "cuda"], "backend"),
        (["--unknown"], "--unknown"),
        (["--temp", "1"], "--temp"),
        (["--raw", "--system", "x"], "--raw"),
        (["--raw", "--no-think"], "--raw"),
        (["--json", "--json-lines"], "--json"),
        (["--json-lines"], "--json-lines takes its prompts from standard input"),
        (["--prompt", "  "], "empty"),
        ([], "standard input is empty"),
    ],
)
def test_usage_errors(arguments: list[str], words: str, text_folder: Path) -> None:
    prompt = [] if not arguments or "--prompt" in arguments else ["--prompt", "hi"]
    done = run("--model-path", text_folder, *prompt, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and "usage:" in done.stderr and "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_run_time_errors(text_folder: Path, tmp_path: Path) -> None:
    def fails(words: str, *arguments: object, **environment: str) -> None:
        done = run("--prompt", "hi", *arguments, **environment)
        assert done.returncode == 1 and done.stdout == "", done.stderr
        assert done.stderr.startswith("error: ") and words in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr

    fails("no such model folder", "--model-path", tmp_path / "none")
    fails("config.json", "--model-path", tmp_path)
    fails("max_tokens", "--model-path", text_folder, "--context", 10**6)
    fails("the context holds 4", "--model-path", text_folder, "--context", 4)
    fails("no such library", "--model-path", text_folder, INFINICORE_INFER_LIB="/none.so")
    fails("device", "--model-path", text_folder, "--device", "kunlun")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_answers_that_the_output_cannot_hold(
    text_folder: Path, shared_model: Qwen3ForCausalLM, encoding: str
) -> None:
    """The text keeps all else, and JSON keeps all of it."""
    settings = ("--max-tokens", 60, "--temperature", 2, "--seed", 5)
    command = ("--model-path", text_folder, "--prompt", "hello", *settings)
    expected = shared_model.chat(
        [{"role": "user", "content": "hello"}], max_steps=60, temperature=2, seed=5
    )
    assert not expected.text.isascii()
    done = run(*command, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    kept = expected.text.encode(encoding, "replace").decode(encoding)
    assert done.stdout.rstrip("\n") == kept.rstrip("\n")
    done = run(*command, "--json", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stdout.isascii()
    assert json.loads(done.stdout)["text"] == expected.text
    # Who says what to do with them is heard.
    done = run(*command, PYTHONIOENCODING=f"{encoding}:backslashreplace")
    assert done.returncode == 0 and "\\" in done.stdout


def test_undecodable_input_and_closed_output(text_folder: Path) -> None:
    done = run("--model-path", text_folder, stdin=b"\xff\xfe")
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    shell = f'"{COMMAND[0]}" "{COMMAND[1]}" --model-path "{text_folder}" --prompt hi --raw | true'
    closed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in closed.stderr


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (arguments.count, {"0": 0, "12": 12}, ["-1", "1.5", "", "many"]),
        (arguments.positive_count, {"1": 1, "012": 12}, ["0", "-1", "1e3", ""]),
        (arguments.seconds, {"0.5": 0.5, "1e3": 1000.0}, ["0", "-1", "nan", "inf", "soon"]),
        (arguments.memory_size, {"0": 0, "1.5K": 1536, "2 GiB": 2 << 30}, ["-1", "1X", "G", ""]),
        (arguments.memory_size, {"1023T": 1023 << 40}, ["9" * 35 + "T"]),
        (arguments.count, {"2147483647": 2**31 - 1}, ["2147483648", "\u0663"]),
        (arguments.body_size, {"1K": 1024}, ["0", "1023", "lots"]),
        (arguments.temperature, {"0": 0.0, "1.5": 1.5}, ["-1", "nan", "inf", "hot"]),
    ],
)
def test_values_of_options(read: Any, good: dict[str, float], bad: list[str]) -> None:
    for text, value in good.items():
        assert read(text) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
            read(text)


def test_without_a_checkout(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """There is no demo model then, and whoever names no other is told so."""
    monkeypatch.setattr(arguments, "DEMO", None)
    assert cli.main(["--prompt", "hi"]) == 2
    errors = capsys.readouterr().err
    assert errors.endswith(
        "error: --model-path is required: only a checkout of the repository has the demo model\n"
    )
    assert "(required)" in cli.build_parser().format_help()


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0 and "--model-path" in done.stdout


def test_ctrl_c_ends_a_prompt_with_130(endless: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--model-path", str(endless), "--prompt", "hello", "--stats", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs tests in the background makes them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in errors and b"end: cancelled" in errors
