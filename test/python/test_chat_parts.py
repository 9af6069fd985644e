"""Parts of the chat by themselves: markdown, lines that go on, history, completion, JSON lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer.chat import commands, multiline
from infinicore_infer.chat.conversation import history_text
from infinicore_infer.chat.display import ColouredDisplay, PlainDisplay
from infinicore_infer.chat.highlight import highlighter
from infinicore_infer.chat.history import History
from infinicore_infer.chat.markdown import Markdown
from markdown_it import MarkdownIt
from python.helpers import DEMO, SCRIPTS
from qwen3 import Qwen3ForCausalLM

DOCUMENT = """\
# Heading with `code`

Plain, **bold**, *leaning*, ***both***, `code ** x`, 2 * 3 * 4, a*b and snake_case_name.
An open **marker and a lone ` tick, ``a ` b``.

No code: `b``.

- one
* two **bold**
  + three

1. first
12) second

> quoted *text*

---

```python
def f(x):  # *not leaning*
    return "**" + x
```

~~~
plain
```
~~~
- - -
last line *leaning*"""
STYLES = {"strong": "1", "em": "3", "code_inline": "36"}


def _coloured(text: str, size: int) -> str:
    written: list[str] = []
    markdown = Markdown(written.append)
    for start in range(0, len(text), size):
        markdown.push(text[start : start + size])
    markdown.finish()
    return "".join(written)


def test_markdown_is_the_same_in_all_pieces() -> None:
    whole = _coloured(DOCUMENT, len(DOCUMENT))
    for size in (1, 2, 3, 7):
        assert _coloured(DOCUMENT, size) == whole
    for end in range(len(DOCUMENT)):  # an answer may end anywhere
        assert _coloured(DOCUMENT[:end], 1) == _coloured(DOCUMENT[:end], 1000)
    assert whole.count("\n") == DOCUMENT.count("\n")


def _spans(tokens: list[Any]) -> list[tuple[str, str]]:
    """Returns the texts of emphasis and code, as markdown-it reads them."""
    found: list[tuple[str, str]] = []
    for token in tokens:
        open_styles: list[str] = []
        for child in token.children or []:
            kind = child.type.removesuffix("_open").removesuffix("_close")
            if child.type == "code_inline":
                found.append(("36", child.content))
            elif child.type.endswith("_open"):
                open_styles.append(STYLES[kind])
            elif child.type.endswith("_close"):
                open_styles.pop()
            elif child.content and open_styles:
                found.append((";".join(sorted(open_styles)), child.content))
    return found


def test_emphasis_is_what_markdown_it_finds() -> None:
    expected = _spans(MarkdownIt().parse(DOCUMENT))
    assert len(expected) > 8
    shown = _coloured(DOCUMENT, 1)
    found = []
    for codes, text in re.findall(r"((?:\x1b\[[\d;]+m)+)([^\x1b\n]+)", shown):
        code = ";".join(sorted(re.findall(r"\x1b\[([\d;]+)m", codes)))
        if code in ("1", "3", "1;3", "36"):
            found.append((code, text))
    # Code of blocks has the colour of code in lines.
    blocks = {("36", "plain"), ("36", "```")}
    assert [span for span in found if span not in blocks] == expected
    assert blocks <= set(found)


def test_blocks() -> None:
    plain = re.sub(r"\x1b\[[\d;]*m", "", _coloured(DOCUMENT, 1)).splitlines()
    assert plain[0] == "Heading with code"
    assert plain[7:10] == ["• one", "• two bold", "  • three"]
    assert plain[11:13] == ["1. first", "12) second"]
    assert plain[14] == "│ quoted text" and plain[16] == "---"
    assert plain[18:22] == DOCUMENT.splitlines()[18:22]
    assert plain[2].endswith("2 * 3 * 4, a*b and snake_case_name.")
    # Nothing stays coloured behind any line.
    for line in _coloured(DOCUMENT, 1).splitlines():
        assert "\x1b" not in line or line.rindex("\x1b[0m") == line.rindex("\x1b[")


def test_code_is_coloured_by_its_language() -> None:
    pytest.importorskip("pygments")
    code = highlighter("Python")
    assert code is not None and highlighter("no such language") is None
    lines = ['"""A text', 'def of two lines"""', "def f(): return 1"]
    shown = [code.line(line) for line in lines]
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in shown] == lines
    # A line means what it means behind those before it.
    assert "\x1b[35mdef" not in shown[1] and "\x1b[35mdef" in shown[2]


def test_terminals_get_no_commands_from_models() -> None:
    text = "a\x1b]0;title\x07b\x9b31mc\td\r\n"
    for display in (PlainDisplay, ColouredDisplay):
        written: list[str] = []
        shown = display(written.append, display is PlainDisplay)
        shown.push(text)
        shown.finish()
        assert "".join(written) == "a]0;titleb31mc\td\n"
    written = []
    PlainDisplay(written.append, False).push(text)
    assert written == [text]  # a file gets what the model wrote


@pytest.mark.parametrize(
    ("lines", "meant"),
    [
        (["hello"], "hello"),
        (["a \\", "b"], "a \nb"),
        (["a\\\\"], "a\\\\"),
        (["a\\\\\\", "b"], "a\\\\\nb"),
        (['"""a', "", 'b"""'], "a\n\nb"),
        (['"""', "a\\", '"""'], "a\\"),
        (['"""a"""'], "a"),
        (['""""""'], ""),
        (["  spaces  "], "spaces"),
        (['say """x"""'], 'say """x"""'),
    ],
)
def test_lines_that_go_on(lines: list[str], meant: str) -> None:
    text = lines[0]
    for line in lines[1:]:
        assert multiline.goes_on(text)
        text = multiline.next_line(text) + line
    assert not multiline.goes_on(text)
    assert multiline.question(text) == meant


def test_history(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    history = History(path)
    for text in ("one", "one", "  ", "two\nlines", "ä\udc80", "one"):
        history.add(text)
    with path.open("ab") as file:
        file.write(b'{"not": "text"}\n\xff\n"cut')
    assert History(path).entries == ["one", "two\nlines", "ä\udc80", "one"]
    path.write_text("".join(f'"{i}"\n' for i in range(3000)))
    assert History(path).entries == [str(i) for i in range(2000, 3000)]
    assert len(path.read_text().splitlines()) == 1000
    # One that cannot be kept disturbs nobody.
    (tmp_path / "file").write_text("")
    lost = History(tmp_path / "file" / "history.jsonl")
    lost.add("x")
    assert lost.entries == ["x"]


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.json").write_text("")
    (tmp_path / "chats").mkdir()
    (tmp_path / ".hidden").write_text("")
    complete = commands.completions
    assert complete("/s") == ["/system ", "/set ", "/save ", "/stats "]
    assert complete("/ex") == ["/exit"] and complete("hello /s") == complete("") == []
    assert complete("/load ch") == ["chat.json", "chats/"] == complete("/load ")
    assert complete(f"/save {tmp_path}/.h") == [f"{tmp_path}/.hidden"]
    assert complete("/load nowhere/") == complete("/clear x") == complete("/nonsense x") == []
    assert complete("/set top_") == ["top_k ", "top_p "]
    assert complete("/set top_p d") == ["default"] and complete("/stats o") == ["on", "off"]


@pytest.mark.parametrize(
    ("prompt", "text", "kept"),
    [
        ("a", "<think>\nHm.\n</think>\n\nParis.", "Paris."),
        ("a", "<think>\nHm", ""),
        ("a", "\n<think>", ""),
        ("a<think>\n", "Hm. The user", ""),
        ("a<think>\n", "Hm.</think>\n\nParis.", "Paris."),
        ("a<think>\n\n</think>\n\n", "Paris.", "Paris."),
        ("a", "The tag <think> begins", "The tag <think> begins"),
        ("a", "", ""),
    ],
)
def test_thinking_is_no_history(prompt: str, text: str, kept: str) -> None:
    assert history_text(prompt, text) == kept


# ------------------------------------------------------------------ JSON lines


def _lines(*requests: object, arguments: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Returns what the program answers; a request is an object, or a line as it is."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in requests]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "qwen3.py"), "--json-lines", "--quiet", *arguments],
        input=b"\n".join(lines),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    return [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]


def test_json_lines() -> None:
    question = "What is the capital of France?"
    messages = [{"role": "system", "content": "Be nice."}, {"role": "user", "content": question}]
    defaults = ("--temperature", "0", "--seed", "11")
    ready, *answers = _lines(
        {"id": 1, "prompt": question},
        {"id": "two", "messages": messages, "thinking": False},
        {"prompt": question, "system": "Be nice.", "thinking": False, "max_tokens": 3},
        {"id": None, "prompt": "The capital of", "raw": True, "max_tokens": 5, "seed": 3},
        b"",
        {"id": 5, "prompt": question, "stream": True, "stop": ["Par"]},
        arguments=defaults,
    )
    assert ready == {"type": "ready", "model": DEMO.name, "context": 2048}
    pieces = [line for line in answers if line["type"] == "piece"]
    first, second, third, raw, streamed = (line for line in answers if line["type"] == "answer")
    with Qwen3ForCausalLM(DEMO, threads=1) as model:
        expected = model.chat([messages[1]], temperature=0)
        assert (first["text"], first["tokens"]) == (expected.text, expected.tokens)
        assert first["finish_reason"] == "stop" and first["completion_tokens"] == len(
            expected.tokens
        )
        expected = model.chat(messages, enable_thinking=False, temperature=0)
        assert (second["content"], second["reasoning"]) == (expected.text, "")
        # Another spelling of the same prompt: all but its last token is there already.
        assert third["tokens"] == expected.tokens[:3] and third["finish_reason"] == "length"
        assert third["reused_tokens"] == third["prompt_tokens"] - 1
        expected = model.generate("The capital of", 5, temperature=0, seed=3)
        assert (raw["tokens"], raw["seed"]) == (expected.tokens, 3)
    assert [line["id"] for line in (first, second, third, raw, streamed)] == [
        1,
        "two",
        None,
        None,
        5,
    ]
    assert first["seed"] == streamed["seed"] == 11
    assert first["reasoning"] and first["content"] == "The capital of France is Paris."
    assert streamed["stop_string"] == "Par" and all(piece["id"] == 5 for piece in pieces)
    for kind in ("reasoning", "content"):
        assert "".join(piece.get(kind, "") for piece in pieces) == streamed[kind]


@pytest.mark.parametrize(
    ("request_line", "words"),
    [
        (b"nonsense", "the line is not JSON"),
        (b"[" * 100_000, "the line is not JSON"),
        (b'{"prompt": "\xff"}', "is not valid Unicode"),
        ([1], "the line must be a JSON object, got list"),
        ({}, "give either prompt or messages"),
        ({"prompt": "a", "messages": []}, "give either prompt or messages"),
        ({"prompt": " "}, "prompt must be a text that is not empty"),
        ({"prompt": 5}, "prompt must be a text that is not empty, got 5"),
        ({"prompt": "a", "system": 5}, "system must be a text"),
        ({"prompt": "a", "temprature": 1}, 'there is no field "temprature"; there are id, prompt'),
        ({"prompt": "a", "temperature": "hot"}, "temperature must be a finite number, got 'hot'"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must be a whole number from 1"),
        ({"prompt": "a", "stop": 5}, "stop must be texts, got 5"),
        ({"prompt": "a", "stream": "yes"}, 'stream must be true or false, got "yes"'),
        ({"prompt": "a", "raw": True, "system": "b"}, "system needs the chat template"),
        ({"messages": [], "raw": True}, "never raw"),
        ({"messages": "hello"}, "messages must be a list of at least one message"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0]: role is 'king'"),
        ({"prompt": "a " * 3000}, "the context holds 2048"),
    ],
)
def test_json_lines_that_ask_wrongly(
    answers_to_wrong: dict[str, dict[str, Any]], request_line: object, words: str
) -> None:
    error = answers_to_wrong[repr(request_line)]
    assert error["type"] == "error" and words in error["message"]


@pytest.fixture(scope="module")
def answers_to_wrong() -> dict[str, dict[str, Any]]:
    """What one process answers to all of them; none keeps it from answering the next."""
    (mark,) = (m for m in test_json_lines_that_ask_wrongly.pytestmark if m.name == "parametrize")
    requests = [request for request, _ in mark.args[1]]
    last = {"id": {"an": "object"}, "prompt": "a"}
    named = {"id": 7, "prompt": ""}
    good = {"id": 8, "prompt": "Hello", "max_tokens": 2}
    _, *answers = _lines(*requests, last, named, good)
    assert answers[-1]["type"] == "answer" and answers[-1]["id"] == 8
    assert answers[-2]["type"] == "error" and answers[-2]["id"] == 7
    assert answers[-3]["id"] is None and "id must be" in answers[-3]["message"]
    return {repr(request): answer for request, answer in zip(requests, answers, strict=False)}


def test_json_lines_say_why_they_cannot_begin(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "qwen3.py"), "--json-lines", "--model-path", tmp_path],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == 1
    error = json.loads(done.stdout)
    assert error["type"] == "error" and "config.json" in error["message"]
