"""The chat page in headless Chromium: conversations with the server."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from browsing import CHAT, answer_with, answered, ask, events, open_page, visit
from serving import LiveServer, slow_steps

ANSWER = "The capital of France is Paris."
THOUGHT = "The user asks for the capital of France. It is Paris."
QUESTION = "What is the capital of France?"


def endless(page: Any) -> None:
    """Has the server go on after the end of the answer."""

    def longer(route: Any) -> None:
        body = {**route.request.post_data_json, "ignore_eos": True}
        route.continue_(post_data=json.dumps(body))

    page.route(CHAT, longer)


def begin(page: Any, text: str = "Tell me a story.") -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector(".message.assistant :is(.markdown p, .thinking:not([hidden]))")


def test_conversation(page: Any) -> None:
    page.wait_for_selector("#status:is([data-state=ready], [data-state=busy])")
    assert page.locator("#status .model").inner_text() == "qwen3-tiny"
    box = ask(page, QUESTION)
    assert box.locator(".markdown").inner_text() == ANSWER
    details = box.locator("details.thinking")
    assert details.get_attribute("open") is None
    assert details.locator(".thought").text_content() == THOUGHT
    assert details.locator("summary").inner_text().startswith("Thought for ")
    stats = box.locator(".stats").inner_text()
    assert "25 tokens" in stats and "tokens/s" in stats
    assert "% of context" in page.locator("#meter").inner_text()
    assert page.locator("#title").inner_text() == QUESTION
    assert page.title().startswith(QUESTION)
    # By keyboard alone: the message field has the focus again.
    assert page.evaluate("document.activeElement.id") == "text"
    assert ANSWER in page.locator("#announcer").text_content()


def test_settings_and_history_are_sent(page: Any) -> None:
    bodies: list[Any] = []
    page.on("request", lambda r: bodies.append(json.loads(r.post_data)) if r.post_data else None)
    page.keyboard.press("Control+,")
    page.fill("#system", "Be short.")
    page.fill("#max_tokens", "50")
    page.fill("#top_p", "0.5")
    page.fill("#temperature", "-1")
    assert page.get_attribute("#temperature", "aria-invalid") == "true"
    page.fill("#temperature", "0")
    page.uncheck("#think-box")
    page.keyboard.press("Escape")
    first = ask(page, QUESTION)
    text = first.locator(".markdown").inner_text()
    assert not first.locator("details.thinking").is_visible() and text
    ask(page, "And of Italy?")
    assert [body["temperature"] for body in bodies] == [0, 0]
    assert bodies[1]["max_tokens"] == 50 and bodies[1]["top_p"] == 0.5
    assert bodies[1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert [item["role"] for item in bodies[1]["messages"]] == [
        *("system", "user", "assistant", "user")
    ]
    assert bodies[1]["messages"][0]["content"] == "Be short."
    assert bodies[1]["messages"][2]["content"].strip() == text


def test_presets_are_qwens(browser: Any, server: LiveServer) -> None:
    """As on the model cards of Qwen3."""
    with open_page(browser, server.url, settings={}) as page:
        bodies = answer_with(page, [events({"content": "Yes."})])
        ask(page, "One")
        page.click("#think")
        ask(page, "Two")
        page.keyboard.press("Control+,")
        page.select_option("#preset", "model")
        page.keyboard.press("Escape")
        ask(page, "Three")
    names = ("temperature", "top_p", "top_k", "min_p")
    assert [[body.get(name) for name in names] for body in bodies] == [
        [0.6, 0.95, 20, 0],
        [0.7, 0.8, 20, 0],
        [None] * 4,
    ]
    think = [body["chat_template_kwargs"]["enable_thinking"] for body in bodies]
    assert think == [True, False, False]


@pytest.mark.parametrize("key", [False, True])
def test_stop_and_continue(
    page: Any, server: LiveServer, monkeypatch: pytest.MonkeyPatch, key: bool
) -> None:
    # Long enough to be stopped: the server goes on after the end of the answer, and takes its time.
    slow_steps(monkeypatch, server.model, 0.05)
    endless(page)
    begin(page)
    if key:
        page.keyboard.press("Escape")
    else:
        page.click("#stop")
    box = answered(page)
    assert box.locator(".problem").inner_text().startswith("Stopped.")
    server.check_idle()
    monkeypatch.undo()
    before = box.locator(".thought").text_content() + box.locator(".markdown").inner_text()
    page.unroute(CHAT)
    box.get_by_role("button", name="Continue").click()
    box = answered(page)
    after = box.locator(".thought").text_content() + box.locator(".markdown").inner_text()
    assert after.startswith(before.strip()) and len(after) > len(before)
    assert not box.locator(".problem").is_visible()


def test_cut_off_answers_go_on_as_the_whole_one(page: Any) -> None:
    ask(page, QUESTION)
    page.keyboard.press("Control+,")
    page.fill("#max_tokens", "21")
    page.keyboard.press("Escape")
    page.locator(".message.assistant").last.get_by_label("Another answer").click()
    part = answered(page)
    assert "Cut off" in part.locator(".problem").inner_text()
    assert ANSWER.startswith(part.locator(".markdown").inner_text())
    page.keyboard.press("Control+,")
    page.fill("#max_tokens", "")
    page.keyboard.press("Escape")
    part.get_by_role("button", name="Continue").click()
    whole = answered(page)
    assert whole.locator(".thought").text_content() == THOUGHT
    assert whole.locator(".markdown").inner_text() == ANSWER
    assert "25 tokens" in whole.locator(".stats").inner_text()


def shows(page: Any, text: str) -> None:
    """Waits until the last answer is this one."""
    last = f".message:last-child .markdown:has-text('{text}')"
    page.wait_for_selector(last, state="attached")


def test_edit_regenerate_and_versions(page: Any) -> None:
    bodies = answer_with(page, [events({"content": f"Answer {i}"}) for i in range(1, 6)])
    ask(page, "First")
    ask(page, "Second")
    page.locator(".message.assistant").last.get_by_label("Another answer").click()
    assert answered(page).locator(".markdown").inner_text() == "Answer 3"
    assert [item["content"] for item in bodies[2]["messages"]] == ["First", "Answer 1", "Second"]
    assert answered(page).locator(".pager").inner_text() == "2 / 2"
    answered(page).get_by_label("Earlier version").click()
    shows(page, "Answer 2")
    page.locator(".message.user").first.get_by_label("Edit and send again").click()
    page.locator(".editor textarea").fill("First, otherwise")
    page.keyboard.press("Enter")
    answered(page)
    assert [item["content"] for item in bodies[3]["messages"]] == ["First, otherwise"]
    assert page.locator(".message").count() == 2
    page.locator(".message.user").get_by_label("Earlier version").click()
    # With what followed it; the newest of its versions.
    shows(page, "Answer 3")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator(".message").count() == 4
    # An edit that is given up changes nothing.
    page.press("#text", "ArrowUp")
    page.locator(".editor textarea").fill("no")
    page.keyboard.press("Escape")
    assert page.locator(".message.user .bubble").last.inner_text() == "Second"


ERRORS = [
    (400, {"message": "temperature: too hot"}, "did not accept", "temperature: too hot"),
    (400, {"message": "9 of 8", "code": "context_length_exceeded"}, "longer than the model", "9"),
    (429, {"message": "queue full", "code": "queue_full"}, "as many questions", "queue full"),
    (500, {"message": "a step failed"}, "failed to compute", "a step failed"),
    (504, {"message": "time over", "code": "timeout"}, "gave up", "time over"),
    (502, None, "cannot be reached", ""),
]


def refuse(route: Any, *, status: int, body: str) -> None:
    route.fulfill(status=status, body=body)


def test_errors_are_told_in_words(page: Any) -> None:
    for status, error, words, detail in ERRORS:
        body = json.dumps({"error": error}) if error else "<h1>Bad gateway</h1>"
        page.route(CHAT, partial(refuse, status=status, body=body))
        shown = ask(page, f"Is {status} told?").locator("[role=alert]").inner_text()
        assert words in shown and detail in shown
        page.unroute(CHAT)
    answer_with(page, [events({"content": "At last."})])
    page.locator("[role=alert]").last.get_by_role("button", name="Try again").click()
    assert answered(page).locator(".markdown").inner_text() == "At last."


def test_broken_streams_keep_what_came(page: Any) -> None:
    event = 'data: {"error": {"message": "a step failed"}}\n\n'
    cut = events({"content": "Half of "}, end="", done=False)
    rest = events({"content": "an answer."})
    bodies = answer_with(page, [cut, cut + event, cut + "data: {nonsense\n\n", cut, rest])
    for words in ("broke off", "a step failed", "unreadable", "broke off"):
        box = ask(page, "Hello")
        assert words in box.locator("[role=alert]").inner_text()
        assert box.locator(".markdown").inner_text() == "Half of"
    box.get_by_role("button", name="Continue").click()
    assert answered(page).locator(".markdown").inner_text() == "Half of an answer."
    assert bodies[-1]["messages"][-1] == {
        "role": "assistant",
        "content": "Half of ",
        "reasoning_content": "",
    }


def look(page: Any, state: str) -> None:
    """Has the page ask for the state of the server, which it would do by itself in a while."""
    page.evaluate("void dispatchEvent(new Event('online'))")
    page.wait_for_selector(f"#status[data-state={state}]")


def test_server_that_goes_and_comes_back(
    browser: Any, make_server: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_server()
    port = int(first.url.rpartition(":")[2])
    with open_page(browser, first.url) as page:
        slow_steps(monkeypatch, first.model, 0.05)
        endless(page)
        begin(page)
        first.close()
        box = answered(page)
        assert box.locator("[role=alert]").is_visible()
        part = box.locator(".thought").text_content()
        page.wait_for_selector("#status[data-state=gone]")
        page.unroute(CHAT)
        second = make_server(port=port, load=False)
        look(page, "loading")
        assert "loading" in ask(page, QUESTION).locator("[role=alert]").inner_text()
        second.service.attach(second.engine)
        look(page, "ready")
        page.locator("[role=alert]").last.get_by_role("button", name="Try again").click()
        assert answered(page).locator(".markdown").inner_text()
        first_answer = page.locator(".message.assistant").first
        assert part and first_answer.locator(".thought").text_content().startswith(part)


def test_key(browser: Any, make_server: Callable[..., LiveServer]) -> None:
    with open_page(browser, make_server(api_key="a-key").url) as page:
        page.wait_for_selector("#status[data-state=key]")
        assert "API key" in ask(page, "Hello").locator("[role=alert]").inner_text()
        page.click("#status")
        page.fill("#key", "a-key")
        page.keyboard.press("Tab")
        page.wait_for_selector("#status[data-state=ready]")
        page.keyboard.press("Escape")
        assert ask(page, QUESTION).locator(".markdown").inner_text()
        kept = page.evaluate("JSON.stringify(localStorage)")
        assert "a-key" not in kept


def test_model_text_is_never_markup(page: Any) -> None:
    evil = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> **bold** `<b>`'
    answer = events({"reasoning_content": evil}, {"content": evil + "\n```py\n<i>\n```"})
    answer_with(page, [answer])
    box = ask(page, evil)
    content = box.locator(".markdown")
    assert page.locator("#log").locator("img, script, b, i").count() == 0
    assert content.locator("strong").inner_text() == "bold"
    assert content.locator("p code").inner_text() == "<b>"
    assert content.locator("pre").inner_text() == "<i>"
    assert page.locator("#title").inner_text().startswith("<img")
    assert page.evaluate("window.hit") is None


def test_policy_refuses_markup_from_strings(browser: Any, server: LiveServer) -> None:
    """Even if the page tried."""
    page = browser.new_page()
    visit(page, server.url)
    tried = "try { document.body.innerHTML = '<p>'; 'set' } catch (error) { error.name }"
    assert page.evaluate(tried) == "TypeError"
    page.close()


def test_copying(browser: Any, server: LiveServer) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    with open_page(browser, server.url, permissions=permissions) as page:
        answer_with(page, [events({"content": "Look:\n```py\nx = 1\n\ny = '&'\n```\nDone *so*."})])
        box = ask(page, "Code?")
        read = "navigator.clipboard.readText()"
        box.locator(".copy-code").click()
        page.wait_for_selector(".copy-code:has-text('Copied')")
        assert page.evaluate(read) == "x = 1\n\ny = '&'"
        box.get_by_label("Copy the answer").click()
        assert page.evaluate(read).endswith("Done *so*.")
        # Where there is no clipboard, as on plain http elsewhere, a selection is copied.
        page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject('no'))")
        page.locator(".message.user").get_by_label("Copy the question").click()
        page.wait_for_selector(".message.user .copy path[d^='m4 10.5']", state="attached")
        assert page.evaluate(read) == "Code?"


def test_keyboard(page: Any) -> None:
    page.fill("#text", "One")
    page.press("#text", "Shift+Enter")
    page.keyboard.type("Two")
    assert page.input_value("#text") == "One\nTwo"
    page.keyboard.press("Control+b")
    assert not page.locator("#sidebar").is_visible()
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.id") == "search"
    page.locator("#log").focus()
    page.keyboard.press("?")
    assert "Shift" in page.locator("#shortcuts").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"


def test_phone(browser: Any, server: LiveServer) -> None:
    options = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
    with open_page(browser, server.url, **options) as page:
        wide = "| a | b |\n|---|---|\n| " + "word " * 30 + "| x |\n\n```\n" + "long " * 60 + "\n```"
        answer_with(page, [events({"content": wide + "\n\n" + "x" * 500})])
        page.fill("#text", "Wide?")
        page.tap("#send")
        answered(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("document.querySelector('#log').scrollWidth") <= 360
        page.tap("#menu")
        assert page.evaluate("document.querySelector('#stage').inert")
        page.tap("#list .entry")
        assert not page.locator("#sidebar").is_visible()
        # Fingers need room.
        small = page.evaluate(
            """[...document.querySelectorAll("button")]
                .filter((button) => button.checkVisibility({ contentVisibilityAuto: true }))
                .map((button) => [button.getBoundingClientRect(), button.outerHTML.slice(0, 80)])
                .filter(([{ width, height }]) => Math.min(width, height) < 28)
                .map(([{ width, height }, what]) => [width, height, what])"""
        )
        assert small == []
