"""The command line ``qwen3``: one answer, or a chat in the terminal."""

from __future__ import annotations

import argparse
import codecs
import io
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from libinfinicore_infer import DataType, DeviceType, Qwen3Error

from infinicore_infer.arguments import (
    add_lookup_argument,
    add_model_arguments,
    add_model_path,
    model_folder,
    model_options,
    positive_count,
)
from infinicore_infer.causal_lm import GenerationResult, KVCache, Qwen3ForCausalLM, SamplingParams
from infinicore_infer.native import weight_cache

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


# What a user can cause: bad values and files, too little memory, a device that is not there.
_USER_ERRORS = (ValueError, OSError, MemoryError, NotImplementedError, Qwen3Error)

_HELP = "Ctrl-C stops an answer; /clear forgets the conversation; /exit or Ctrl-D ends."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Report a usage error the way all other errors are reported."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = _Parser(
        prog="qwen3",
        description="Run a Qwen3 model. With --prompt, or with text piped into standard input, one "
        "answer is written; without either, a chat begins.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_model_path(parser)
    add_model_arguments(parser)
    add(
        "--clear-cache",
        action="store_true",
        help="delete all packed weights that are kept on disk, and end",
    )
    add(
        "--context",
        type=positive_count,
        metavar="TOKENS",
        help="longest conversation in tokens (default: the model's own limit)",
    )
    add("--prompt", metavar="TEXT", help="text that the model answers before the program ends")
    add("--system", metavar="TEXT", help="system message that the conversation begins with")
    add(
        "--raw",
        action="store_true",
        help="let the model continue the prompt as it is, without the chat template",
    )
    add("--no-think", action="store_true", help="ask the model to answer without thinking first")
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help="longest answer in tokens (default: to the end of the context)",
    )
    add(
        "--temperature",
        type=float,
        metavar="X",
        help="factor that flattens the distribution a token is drawn from; 0 always takes the "
        "likeliest token (this and the next three by default: the checkpoint's own)",
    )
    add("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens; 0 draws from all")
    add(
        "--top-p",
        type=float,
        metavar="X",
        help="draw from the likeliest tokens that together have probability X",
    )
    add(
        "--min-p",
        type=float,
        metavar="X",
        help="draw from tokens that are at least X times as likely as the likeliest",
    )
    add(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="factor above 1 that makes tokens of prompt and answer less likely (default: the "
        "checkpoint's)",
    )
    add(
        "--presence-penalty",
        type=float,
        metavar="X",
        help="amount taken off the logit of every token that the answer has already",
    )
    add(
        "--frequency-penalty",
        type=float,
        metavar="X",
        help="amount taken off the logit of a token for each time that the answer has it",
    )
    add(
        "--seed",
        type=int,
        metavar="N",
        help="seed of the random numbers; the same seed gives the same answer (default: random)",
    )
    add_lookup_argument(parser)
    add(
        "--stop",
        action="append",
        metavar="TEXT",
        help="text that the answer ends before; may be given several times",
    )
    add(
        "--stats",
        action="store_true",
        help="write counts of tokens and speeds to standard error after each answer",
    )
    add("--json", action="store_true", help="write one JSON object instead of the answer's text")
    add(
        "--quiet",
        action="store_true",
        help="write no notes and no progress bar to standard error",
    )
    return parser


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that are settings of a generation."""
    return {
        "max_steps": args.max_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "presence_penalty": args.presence_penalty,
        "frequency_penalty": args.frequency_penalty,
        "seed": args.seed,
        "stop": args.stop,
        "lookup": args.lookup,
    }


def _check_usage(args: argparse.Namespace) -> None:
    """Check values before a model is loaded for them.

    Raises:
        ValueError: A value is not acceptable.
    """
    DeviceType.parse(args.device)
    DataType.parse(args.dtype)
    SamplingParams.from_config({}, **_settings(args))
    if not args.clear_cache:
        model_folder(args.model_path)
    if args.raw and (args.system is not None or args.no_think):
        raise ValueError("--system and --no-think need the chat template, which --raw leaves out")
    if args.prompt is not None and not args.prompt.strip():
        raise ValueError("the prompt is empty")


def _usage_error(parser: argparse.ArgumentParser, message: object) -> int:
    parser.print_usage(sys.stderr)
    _note(f"error: {message}")
    return EXIT_USAGE


def _write(text: str) -> None:
    if sys.stdout is None:  # a process may begin without one
        raise OSError("standard output is closed")
    sys.stdout.write(text)
    sys.stdout.flush()


def _writes_utf8() -> bool:
    try:
        return codecs.lookup(sys.stdout.encoding).name == "utf-8"
    except (LookupError, TypeError):  # a stream of the caller's, which has no encoding
        return True


def _keep_answers() -> None:
    """Have characters that standard output cannot hold replaced, instead of losing the answer."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")


def _note(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _read_input() -> str | None:
    """Return what is piped into standard input; ``None``: somebody types there."""
    if sys.stdin is None:
        return ""
    if sys.stdin.isatty():
        return None
    # The line end that echo and editors add is not meant for the model.
    return _as_utf8(sys.stdin.read(), sys.stdin.encoding).removesuffix("\n")


def _as_utf8(text: str, encoding: str) -> str:
    """Return text that a locale without UTF-8, such as C, could not read, as it was meant."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode(encoding, "surrogateescape").decode()
        except (LookupError, ValueError):
            pass  # bytes that are no text at all are an error later
    return text


@contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C in a list instead of raising KeyboardInterrupt.

    An exception could strike between any two instructions, the ones that clean up included.
    """
    interrupts: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def answer(
    model: Qwen3ForCausalLM,
    prompt: str,
    settings: dict[str, Any],
    cache: KVCache,
    show: bool,
) -> tuple[GenerationResult, bool]:
    """Generate an answer on a second thread and write it as it comes.

    The main thread only waits and writes, so that Ctrl-C is heard in the middle of a long step and
    can cancel it.

    Args:
        model: The model.
        prompt: The prompt's text.
        settings: Settings of the generation.
        cache: Cache to use; keeps its tokens for the next turn.
        show: Whether to write the text to stdout.

    Returns:
        The result, and whether Ctrl-C ended it.

    Raises:
        Exception: Whatever the generation raised.
    """
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    cancel = threading.Event()
    # Made here, so that errors in prompt and settings are raised before a thread exists.
    stream = model.stream_generate(prompt, cache=cache, cancel=cancel, **settings)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            for piece in stream:
                if piece.text:
                    pieces.put(piece.text)
        except BaseException as error:
            failure.append(error)
        finally:
            stream.close()
            pieces.put(None)

    worker = threading.Thread(target=work, name="generate")
    with _counted_interrupts() as interrupts:
        worker.start()
        try:
            while True:
                try:
                    # A timeout, because a step may begin just after it was asked to cancel.
                    text = pieces.get(timeout=0.1)
                except queue.Empty:
                    text = ""
                if interrupts:
                    cancel.set()
                    model.cancel()
                if text is None:
                    break
                if text and show and not interrupts:
                    _write(text)
        except BaseException:
            # Standard output is gone, for example: stop the work before passing it on.
            cancel.set()
            model.cancel()
            raise
        finally:
            worker.join()
    if failure:
        raise failure[0]
    return stream.result, bool(interrupts)


def stats_line(result: GenerationResult) -> str:
    """Return one line about an answer's length and speed."""
    reused = f" ({result.reused_tokens} cached)" if result.reused_tokens else ""
    drafted, accepted = result.drafted_tokens, result.accepted_tokens
    lookup = f", lookup {accepted} of {drafted} guesses right" if drafted else ""
    return (
        f"prompt {result.prompt_tokens} tokens{reused}, TTFT {result.ttft * 1000:.0f} ms, "
        f"prefill {result.prefill_tps:.1f} tok/s, answer {len(result.tokens)} tokens, "
        f"decode {result.decode_tps:.1f} tok/s{lookup}, end: {result.finish_reason}"
    )


def _report(result: GenerationResult) -> dict[str, Any]:
    """Return what --json prints."""
    return {
        "text": result.text,
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "stop_string": result.stop_string,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": len(result.tokens),
        "drafted_tokens": result.drafted_tokens,
        "accepted_tokens": result.accepted_tokens,
        "seed": result.seed,
        "ttft_s": round(result.ttft, 6),
        "prefill_tps": round(result.prefill_tps, 3),
        "decode_tps": round(result.decode_tps, 3),
    }


def _conversation(args: argparse.Namespace) -> list[dict[str, str]]:
    return [{"role": "system", "content": args.system}] if args.system else []


def _render(
    model: Qwen3ForCausalLM, messages: Sequence[dict[str, str]], args: argparse.Namespace
) -> str:
    if args.raw:
        return messages[-1]["content"]
    return model.chat_prompt(messages, enable_thinking=not args.no_think)


def run_once(model: Qwen3ForCausalLM, prompt: str, args: argparse.Namespace) -> int:
    """Answer one prompt; return the exit code."""
    messages = [*_conversation(args), {"role": "user", "content": prompt}]
    with model.create_kv_cache() as cache:
        result, interrupted = answer(
            model, _render(model, messages, args), _settings(args), cache, not args.json
        )
    if args.json:
        _write(json.dumps(_report(result), ensure_ascii=not _writes_utf8()) + "\n")
    elif not result.text.endswith("\n"):
        _write("\n")
    if args.stats:
        _note(stats_line(result))
    return EXIT_INTERRUPTED if interrupted else EXIT_OK


def _history_text(prompt: str, text: str) -> str:
    """Return an answer as it belongs in the history: without its thinking, ended or cut off."""
    _, end, answer = text.rpartition("</think>")
    if not end and any((prompt.rstrip().endswith("<think>"), text.lstrip().startswith("<think>"))):
        return ""
    return answer.lstrip("\n")


def _chat_turn(
    model: Qwen3ForCausalLM,
    messages: list[dict[str, str]],
    line: str,
    cache: KVCache,
    args: argparse.Namespace,
) -> list[dict[str, str]]:
    """Answer one line; return the conversation with both in it."""
    messages = [*messages, {"role": "user", "content": line}]
    prompt = _render(model, messages, args)
    result, _ = answer(model, prompt, _settings(args), cache, True)
    _write("\n")
    if args.stats:
        _note(stats_line(result))
    return [*messages, {"role": "assistant", "content": _history_text(prompt, result.text)}]


def run_chat(model: Qwen3ForCausalLM, args: argparse.Namespace) -> int:
    """Chat in the terminal until /exit or the end of input; return the exit code."""
    # Line editing and history at the prompt, where Python has it.
    try:
        import readline  # noqa: F401
    except ImportError:
        pass
    if not args.quiet:
        _note(_HELP)
    messages = _conversation(args)
    with model.create_kv_cache() as cache:
        while True:
            try:
                line = input("> ").strip()
                if line == "/exit":
                    return EXIT_OK
                if line == "/clear":
                    messages = _conversation(args)
                elif line == "/help":
                    _note(_HELP)
                elif line:
                    messages = _chat_turn(model, messages, line, cache, args)
            except KeyboardInterrupt:
                # At the prompt, or a moment before or after an answer.
                _write("\n")
            except EOFError:
                _write("\n")
                return EXIT_OK
            except (ValueError, MemoryError) as error:
                # Such as a conversation that has outgrown the context: the chat can go on.
                _note(f"error: {error}")


def _load(args: argparse.Namespace) -> Qwen3ForCausalLM:
    folder = model_folder(args.model_path)
    if args.model_path is None and not args.quiet:
        _note(f"no --model-path: using the tiny demo model in {folder}")
    return Qwen3ForCausalLM(
        folder, max_tokens=args.context, progress=not args.quiet, **model_options(args)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; ``None``: those of the process.

    Returns:
        The exit code: 0 ok, 1 run-time error, 2 usage, 130 ended by Ctrl-C.
    """
    _keep_answers()
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    for name in ("prompt", "system"):
        if getattr(args, name) is not None:
            setattr(args, name, _as_utf8(getattr(args, name), sys.getfilesystemencoding()))
    try:
        _check_usage(args)
    except ValueError as error:
        return _usage_error(parser, error)
    try:
        if args.clear_cache:
            freed = weight_cache.clear(Path(args.cache_dir) if args.cache_dir else None)
            _note(f"deleted {freed / 1e9:.2f} GB of packed weights")
            return EXIT_OK
        prompt = args.prompt
        if prompt is None:
            prompt = _read_input()
            if prompt is not None and not prompt.strip():
                return _usage_error(parser, "the prompt from standard input is empty")
        if prompt is None and args.json:
            return _usage_error(parser, "--json needs --prompt or a piped prompt")
        with _load(args) as model:
            return run_chat(model, args) if prompt is None else run_once(model, prompt, args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left; Python would complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except _USER_ERRORS as error:
        _note(f"error: {error}")
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
