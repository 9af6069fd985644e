"""The chat in a terminal, typed into as a person types, with prompt_toolkit and without."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from infinicore_infer.chat.answering import stats_line
from infinicore_infer.chat.chat import Chat
from infinicore_infer.chat.conversation import Conversation
from python.helpers import DEMO
from python.terminal import Terminal
from qwen3 import GenerationResult, Qwen3ForCausalLM

READY = "\x1b[?2004h"  # bracketed paste is on: an editor waits
GREETING = "Ctrl-D ends."
ANSWER = "The capital of France is Paris."
QUESTION = "What is the capital of France?"


@pytest.fixture(params=["prompt_toolkit", "readline"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Variables of a process that has this editor, in a terminal that can do everything."""
    # Its answers would have to be written here.
    values = {"term": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    values["XDG_STATE_HOME"] = str(tmp_path / "state")
    if request.param == "readline":
        pytest.importorskip("readline")
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        (hidden / "prompt_toolkit.py").write_text("raise ImportError('hidden')\n")
        values["PYTHONPATH"] = str(hidden)
    elif importlib.util.find_spec("prompt_toolkit") is None:
        pytest.skip("prompt_toolkit is not installed: scripts/requirements/chat.txt")
    return values


def _ask(terminal: Terminal, keys: str, words: str) -> None:
    """Types lines, waits for what they bring, and then for the next prompt."""
    *lines, last = keys.split("...")
    for line in lines:  # each of them goes on with the next one
        terminal.send(line)
        terminal.expect("...")
    terminal.send(last)
    terminal.expect(words)
    terminal.expect(READY)


def test_lines_typed_in_every_way(environment: dict[str, str], tmp_path: Path) -> None:
    """What the model is asked is what the conversation's file says."""
    settings = ("--temperature", 0, "--max-tokens", 30, "--no-think", "--stats")
    terminal = Terminal(*settings, **environment)
    try:
        terminal.expect(GREETING)
        terminal.expect(READY)
        _ask(terminal, f"{QUESTION}\r", "end: stop")
        _ask(terminal, "one \\\r...two\r", "end: ")
        _ask(terminal, '"""\r...three\r...\r...four"""\r', "end: ")
        _ask(terminal, "five\x1b\rsix\r", "end: ")
        _ask(terminal, "\x1b[200~seven \\\reight\x1b[201~\r", "end: ")
        _ask(terminal, " /clear\r", "end: ")
        # Ctrl-C drops a line that is not sent, and nothing else.
        terminal.send("half a line")
        terminal.expect("half a line")
        time.sleep(0.3)  # readline does not hear a signal in the instant between echo and next wait
        _ask(terminal, "\x03", "\n")
        # The arrow up goes back to what was typed before.
        _ask(terminal, "\x1b[A\r", "end: ")
        terminal.send("/sav")
        terminal.expect("/sav")
        terminal.send("\t")
        terminal.expect("e")
        _ask(terminal, f"{tmp_path}/chat.json\r", "14 messages")
        terminal.send("\x04")
        assert terminal.exit_code() == 0
    finally:
        terminal.close()
    assert b"Traceback" not in terminal.seen
    saved = json.loads((tmp_path / "chat.json").read_text("utf-8"))
    questions = [message["content"] for message in saved["messages"][::2]]
    several = ["one \ntwo", "three\n\nfour", "five\nsix", "seven \\\neight"]
    assert questions == [QUESTION, *several, "/clear", "/clear"]
    assert saved["messages"][1] == {"role": "assistant", "content": ANSWER}
    assert saved["settings"] == {"temperature": 0.0, "max_tokens": 30}
    assert not saved["thinking"]
    # The next chat knows what was typed in this one, and only its user can read that.
    history = tmp_path / "state" / "infinicore_infer" / "history.jsonl"
    assert history.stat().st_mode & 0o077 == 0
    typed = [json.loads(line) for line in history.read_text().splitlines()]
    assert typed[0] == QUESTION and f"/save {tmp_path}/chat.json" in typed
    terminal = Terminal("--no-think", "--temperature", 0, **environment)
    try:
        terminal.expect(GREETING)
        terminal.expect(READY)
        terminal.send("\x1b[A\x1b[A")
        terminal.expect("/clear")
        terminal.send("\x04" if environment.get("PYTHONPATH") is None else "\x15\x04")
    finally:
        terminal.close()


def test_ctrl_c_stops_an_answer_and_keeps_the_chat(
    environment: dict[str, str], endless: Path
) -> None:
    terminal = Terminal("--model-path", endless, "--stats", "--no-history", **environment)
    try:
        terminal.expect(GREETING)
        terminal.expect(READY)
        terminal.send("hello there\r")
        terminal.expect("\x1b[?2004l")
        terminal.more(20)
        terminal.send("\x03")
        terminal.expect("end: cancelled")
        terminal.expect(READY)
        _ask(terminal, "/stats\r", "2 messages")
        _ask(terminal, "/set max_tokens 3\r", "max_tokens 3")
        _ask(terminal, "and now?\r", " cached), TTFT")
        terminal.send("/exit\r")
        assert terminal.exit_code() == 0
    finally:
        terminal.close()
    assert b"Traceback" not in terminal.seen
    assert not (Path(environment["XDG_STATE_HOME"]) / "infinicore_infer").exists()


@pytest.fixture
def terminal(endless: Path) -> Iterator[Terminal]:
    session = Terminal("--model-path", endless, "--stats", "--system", "Be brief.")
    yield session
    session.close()


def test_a_terminal_that_knows_nothing(terminal: Terminal) -> None:
    """There is no escape sequence at all on a dumb one."""
    terminal.expect(f"{GREETING}\r\n> ")
    terminal.send("hello there\n")
    terminal.expect("hello there\r\n")
    terminal.more(20)
    assert b"\x1b" not in terminal.seen
    terminal.send("\x03")
    terminal.expect("end: cancelled")
    terminal.send("/clear\n")
    terminal.expect("> ")
    terminal.send("/stats\n")
    terminal.expect("0 messages")
    terminal.send("/exit\n")
    assert terminal.exit_code() == 0
    assert b"Traceback" not in terminal.seen and b"\x1b" not in terminal.seen


def test_end_of_input_ends_the_chat(terminal: Terminal) -> None:
    # What is typed before the prompt stands is lost when the terminal changes its mode.
    terminal.expect(f"{GREETING}\r\n> ")
    terminal.send("\x04")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"term": "xterm"}, True), ({"term": "xterm", "NO_COLOR": "1"}, False), ({}, False)],
)
def test_thinking_is_dim_where_there_are_colours(variables: dict[str, str], coloured: bool) -> None:
    terminal = Terminal("--prompt", QUESTION, "--temperature", 0, "--quiet", **variables)
    try:
        assert terminal.exit_code() == 0
    finally:
        terminal.close()
    shown = terminal.seen.decode().replace("\r\n", "\n")
    thinking = "The user asks for the capital of France. It is Paris."
    if coloured:
        dim = "".join(re.findall(r"\x1b\[2m(.*?)\x1b\[0m", shown, re.DOTALL))
        assert dim == thinking
        assert shown.endswith(f"\n\n{ANSWER}\n")
    else:
        assert shown == f"<think>\n{thinking}\n</think>\n\n{ANSWER}\n"


@pytest.fixture(scope="module")
def demo() -> Iterator[Qwen3ForCausalLM]:
    with Qwen3ForCausalLM(DEMO, threads=1) as model:
        yield model


@pytest.fixture
def chat(demo: Qwen3ForCausalLM) -> Iterator[Chat]:
    chat = Chat(demo, Conversation(thinking=False, settings={"temperature": 0}))
    yield chat
    chat.close()


def test_a_saved_conversation_is_not_computed_again(
    chat: Chat, demo: Qwen3ForCausalLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And goes on with the same words as one that was never interrupted."""
    path = tmp_path / "chat.json"
    chat.turn("/system You are helpful.")
    chat.turn(QUESTION)
    chat.turn(f"/save {path}")
    held = list(chat.cache.tokens)
    chat.turn("And of Italy?")
    expected = chat.last
    assert expected is not None and expected.reused_tokens > 20
    for damage, words in ((False, f"{len(held)} tokens computed already"), (True, "again")):
        if damage:
            (tmp_path / "chat.json.kv").write_bytes(b"nonsense")
        other = Chat(demo, Conversation())
        capsys.readouterr()
        other.turn(f"/load {path}")
        assert words in capsys.readouterr().err
        assert other.conversation.system == "You are helpful." and not other.conversation.thinking
        other.turn("And of Italy?")
        assert other.last is not None and other.last.tokens == expected.tokens
        assert other.last.reused_tokens == (0 if damage else expected.reused_tokens)
        other.close()


def test_a_file_of_computed_tokens_is_never_another_conversations(
    chat: Chat, demo: Qwen3ForCausalLM, tmp_path: Path
) -> None:
    path, computed = tmp_path / "chat.json", tmp_path / "chat.json.kv"
    chat.turn(QUESTION)
    chat.turn(f"/save {path}")
    assert computed.is_file() and path.stat().st_mode & 0o077 == 0
    other = Chat(demo, Conversation())
    other.turn(f"/save {path}")
    assert not computed.exists() and json.loads(path.read_text())["messages"] == []
    other.close()


def test_commands(chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def says(line: str) -> str:
        capsys.readouterr()
        chat.turn(line)
        return capsys.readouterr().err

    def asked() -> list[str]:
        return [message["content"] for message in chat.conversation.messages[::2]]

    assert "/regen" in says("/help") and "Alt+Enter" in says("/help")
    chat.turn(QUESTION)
    first = chat.last
    assert first is not None and first.text == ANSWER
    assert stats_line(first) in says("/stats") and "2 messages" in says("/stats")
    assert says("/stats on") == "" and "decode" in says("Hello")
    chat.turn("/stats off")
    assert asked() == [QUESTION, "Hello"]
    assert "forgotten: Hello" in says("/undo") and asked() == [QUESTION]
    chat.turn("/regen")
    assert chat.last is not first and chat.last is not None and chat.last.text == ANSWER
    assert asked() == [QUESTION]
    # The same draws would give the same answer, so each answer anew has the next seed.
    assert "seed 7\n" in says("/set seed 7")
    for line in ("/set temperature 1.5", "/regen", "/regen"):
        chat.turn(line)
    assert chat.last is not None and chat.last.seed == 7 + 3
    chat.turn("Hello")
    assert chat.last.seed == 7
    assert "temperature 1.5\n" in says("/set") and "top_k 20 (default)" in says("/set")
    assert "temperature 0.6 (default)" in says("/set temperature default")
    assert 'stop ["a b", "c"]' in says('/set stop ["a b", "c"]')
    assert 'stop ["."]' in says("/set stop .")
    chat.turn("/think")
    chat.turn("/set temperature 0")
    chat.turn("/clear")
    assert asked() == []
    chat.turn("/no_think What is the capital of France?")
    assert asked() == [QUESTION] and not chat.conversation.thinking
    assert "none" in says("/system") and "Be brief." in says("/system Be brief.")
    assert chat.conversation.prompt(chat.model, "x").startswith("<|im_start|>system\nBe brief.")
    assert "none" in says("/system -")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nonsense", "there is no command /nonsense; /help lists them"),
        ("/clear all", "/clear takes nothing, got 'all'"),
        ("/stats maybe", "/stats takes on or off, got 'maybe'"),
        ("/set warmth 1", "no setting 'warmth'; there are max_tokens, temperature"),
        ("/set temperature", "/set temperature needs a value, or default"),
        ("/set temperature hot", "temperature must be a number, got 'hot'"),
        ("/set temperature -1", "temperature must be at least 0, got -1.0"),
        ("/set max_tokens 0", "max_tokens must be a whole number from 1 to 4294967295, got 0"),
        ("/set stop [1]", "stop must be strings of at least one character"),
        ("/undo", "nothing has been asked yet"),
        ("/regen", "nothing has been asked yet"),
        ("/save", "name a file, such as chat.json"),
        ("/load /nowhere/chat.json", "/nowhere/chat.json: there is no such file"),
        ("/load /dev/null", "/dev/null: is no file"),
    ],
)
def test_commands_that_cannot_be_done(chat: Chat, line: str, words: str) -> None:
    before = dict(chat.conversation.settings)
    with pytest.raises(ValueError, match=re.escape(words)):
        chat.turn(line)
    assert chat.conversation.settings == before


def test_an_answer_that_fails_loses_no_question(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.turn(QUESTION)
    before = list(chat.conversation.messages)
    chat.conversation.settings["lookup"] = 65
    for line in ("Hello", "/regen"):
        with pytest.raises(ValueError, match="lookup"):
            chat.turn(line)
        assert chat.conversation.messages == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "another"}, "is no saved conversation"),
        ({"version": 2}, "has version 2; this program reads 1"),
        ({"system": 5}, "system must be a text or null, got 5"),
        ({"thinking": "yes"}, "thinking must be true or false, got 'yes'"),
        ({"settings": []}, "settings must be an object"),
        ({"settings": {"temperature": -1}}, "settings: temperature must be at least 0"),
        ({"settings": {"warmth": 1}}, "settings: no setting 'warmth'"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0]: must be an object whose"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0]: content must be a text"),
    ],
)
def test_files_that_are_no_conversation(
    chat: Chat, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    path = tmp_path / "chat.json"
    chat.turn(f"/save {path}")
    good = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(good | changes))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {words}")):
        chat.turn(f"/load {path}")


def test_files_of_others_are_not_overwritten(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ValueError, match="is no saved conversation"):
        chat.turn(f"/save {path}")
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_thinking_that_was_cut_off_is_no_part_of_the_next_prompt(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = []

    def answer(model: object, prompt: str, *rest: object) -> tuple[GenerationResult, bool]:
        prompts.append(prompt)
        return GenerationResult(text="<think>\nI wonder"), True

    monkeypatch.setattr("infinicore_infer.chat.chat.answer", answer)
    chat.turn("/think Hello")
    chat.turn("Again")
    assert len(prompts) == 2 and "wonder" not in prompts[1]
    assert prompts[1].startswith(prompts[0].partition("<think>")[0])
