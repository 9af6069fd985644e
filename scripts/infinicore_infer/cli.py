"""The command line ``qwen3``: one answer, or a chat in the terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from libinfinicore_infer import DataType, DeviceType, Qwen3Error

from infinicore_infer.arguments import (
    add_lookup_argument,
    add_model_arguments,
    add_model_path,
    add_task_argument,
    model_folder,
    model_options,
    positive_count,
)
from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.chat import settings as chat_settings
from infinicore_infer.chat.answering import answer, report, stats_line
from infinicore_infer.chat.chat import run_chat
from infinicore_infer.chat.conversation import Conversation, opens_thinking
from infinicore_infer.chat.display import open_display
from infinicore_infer.chat.lines import run_lines, write_error
from infinicore_infer.chat.streams import (
    as_utf8,
    keep_answers,
    note,
    read_input,
    write,
    writes_utf8,
)
from infinicore_infer.native import weight_cache
from infinicore_infer.pooling_cli import COMMANDS
from infinicore_infer.pooling_cli import build_parser as build_command_parser
from infinicore_infer.pooling_cli import run as run_command

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


# What a user can cause: bad values and files, too little memory, a device that is not there.
_USER_ERRORS = (ValueError, OSError, MemoryError, NotImplementedError, Qwen3Error)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Report a usage error the way all other errors are reported."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = _Parser(
        prog="qwen3",
        usage="%(prog)s [OPTION ...]\n       %(prog)s embed [OPTION ...] [TEXT ...]\n"
        "       %(prog)s rerank --query TEXT [OPTION ...] [DOCUMENT ...]",
        description="Run a Qwen3 model. With --prompt, or with text piped into standard input, one "
        "answer is written; without either, a chat begins.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_model_path(parser)
    add_model_arguments(parser)
    add_task_argument(parser)
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
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        "--json", action="store_true", help="write one JSON object instead of the answer's text"
    )
    forms.add_argument(
        "--json-lines",
        action="store_true",
        help="answer requests from standard input, one JSON object a line, in such lines",
    )
    add(
        "--no-history",
        action="store_true",
        help="keep nothing on disk of what is typed in a chat",
    )
    add(
        "--quiet",
        action="store_true",
        help="write no notes and no progress bar to standard error",
    )
    return parser


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of answers that were given."""
    values = {name: getattr(args, name) for name in chat_settings.NAMES}
    values["lookup"] = args.lookup or None
    return {name: value for name, value in values.items() if value is not None}


def _check_usage(args: argparse.Namespace) -> None:
    """Check values before a model is loaded for them.

    Raises:
        ValueError: A value is not acceptable.
    """
    DeviceType.parse(args.device)
    DataType.parse(args.dtype)
    chat_settings.inside(_settings(args))
    if not args.clear_cache:
        model_folder(args.model_path)
    if args.raw and (args.system is not None or args.no_think):
        raise ValueError("--system and --no-think need the chat template, which --raw leaves out")
    if args.prompt is not None and not args.prompt.strip():
        raise ValueError("the prompt is empty")
    if args.prompt is not None and args.json_lines:
        raise ValueError("--json-lines takes its prompts from standard input, not from --prompt")


def _usage_error(parser: argparse.ArgumentParser, message: object) -> int:
    parser.print_usage(sys.stderr)
    note(f"error: {message}")
    return EXIT_USAGE


def _conversation(args: argparse.Namespace) -> Conversation:
    return Conversation(args.system, not args.no_think, args.raw, _settings(args))


def run_once(model: Qwen3ForCausalLM, prompt: str, args: argparse.Namespace) -> int:
    """Answer one prompt; return the exit code."""
    conversation = _conversation(args)
    text = conversation.prompt(model, prompt)
    display = None if args.json else open_display(opens_thinking(text))
    with model.create_kv_cache() as cache:
        result, interrupted = answer(
            model,
            text,
            conversation.generation_settings(),
            cache,
            None if display is None else display.push,
        )
    if display is None:
        write(json.dumps(report(result), ensure_ascii=not writes_utf8()) + "\n")
    else:
        display.finish()
    if args.stats:
        note(stats_line(result))
    return EXIT_INTERRUPTED if interrupted else EXIT_OK


def _load(args: argparse.Namespace) -> Qwen3ForCausalLM:
    folder = model_folder(args.model_path)
    if args.model_path is None and not args.quiet:
        note(f"no --model-path: using the tiny demo model in {folder}")
    return Qwen3ForCausalLM(
        folder,
        max_tokens=args.context,
        progress=not args.quiet,
        task=args.task,
        **model_options(args),
    )


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit code."""
    if args.clear_cache:
        freed = weight_cache.clear(Path(args.cache_dir) if args.cache_dir else None)
        note(f"deleted {freed / 1e9:.2f} GB of packed weights")
        return EXIT_OK
    prompt = args.prompt
    if prompt is None and not args.json_lines:
        prompt = read_input()
        if prompt is not None and not prompt.strip():
            return _usage_error(parser, "the prompt from standard input is empty")
        if prompt is None and args.json:
            return _usage_error(parser, "--json needs --prompt or a piped prompt")
    with _load(args) as model:
        if args.json_lines:
            run_lines(model, _conversation(args))
        elif prompt is None:
            run_chat(model, _conversation(args), args)
        else:
            return run_once(model, prompt, args)
        return EXIT_OK


def _guarded(run: Callable[[], int], tell: Callable[[Exception], object] | None = None) -> int:
    """Run something; return the exit code, also of what a user can cause.

    Args:
        run: Returns the exit code.
        tell: Told of an error besides standard error.
    """
    try:
        return run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left; Python would complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except _USER_ERRORS as error:
        note(f"error: {error}")
        if tell is not None:
            with suppress(OSError):  # which may be the error
                tell(error)
        return EXIT_ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; ``None``: those of the process.

    Returns:
        The exit code: 0 ok, 1 run-time error, 2 usage, 130 ended by Ctrl-C.
    """
    keep_answers()
    given = sys.argv[1:] if argv is None else argv
    commands = given[:1] and given[0] in COMMANDS
    parser = build_command_parser(_Parser) if commands else build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    if commands:
        return _guarded(lambda: run_command(args))
    for name in ("prompt", "system"):
        if getattr(args, name) is not None:
            setattr(args, name, as_utf8(getattr(args, name), sys.getfilesystemencoding()))
    try:
        _check_usage(args)
    except ValueError as error:
        return _usage_error(parser, error)
    return _guarded(lambda: _run(parser, args), write_error if args.json_lines else None)


if __name__ == "__main__":
    sys.exit(main())
