"""The chat page in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from serving import LiveServer, slow_steps

ANSWER = "The capital of France is Paris."
THOUGHT = "The user asks for the capital of France. It is Paris."


def test_page_is_one_file(server: LiveServer) -> None:
    response = httpx.get(server.url)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"https?://|innerHTML|document\.write|\son\w+=", response.text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    with api.sync_playwright() as play:
        options = {"executable_path": path, "args": ["--no-sandbox"]}
        started = play.chromium.launch(**options)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Iterator[Any]:
    """A page whose requests beyond the server, console errors and exceptions fail the test."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(15000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda item: problems.append(item.text) if item.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((server.url, "data:"))
            else problems.append(f"asked for {request.url}")
        ),
    )
    page.goto(server.url)
    page.click("#settings summary")
    page.fill("#temperature", "0")
    yield page
    context.close()
    assert not [text for text in problems if "Failed to load resource" not in text]


def ask(page: Any, text: str) -> Any:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector("#send:visible")
    return page.locator("article.assistant").last


def test_conversation(page: Any) -> None:
    box = ask(page, "What is the capital of France?")
    assert box.locator(".content").inner_text() == ANSWER
    details = box.locator("details.thinking")
    assert details.get_attribute("open") is None
    assert details.locator("div").text_content() == THOUGHT
    assert "25 tokens" in box.locator(".note").inner_text()
    # By keyboard alone: the message field has the focus again.
    assert page.evaluate("document.activeElement.id") == "text"


def test_settings_and_history_are_sent(page: Any) -> None:
    bodies: list[Any] = []
    page.on("request", lambda r: bodies.append(json.loads(r.post_data)) if r.post_data else None)
    page.fill("#system", "Be short.")
    page.fill("#max_tokens", "50")
    page.fill("#top_p", "0.5")
    page.uncheck("#think")
    first = ask(page, "What is the capital of France?")
    text = first.locator(".content").inner_text()
    assert first.locator("details.thinking").count() == 0 and text
    ask(page, "And of Italy?")
    assert [body["temperature"] for body in bodies] == [0, 0]
    assert bodies[1]["max_tokens"] == 50 and bodies[1]["top_p"] == 0.5
    assert bodies[1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert [item["role"] for item in bodies[1]["messages"]] == [
        *("system", "user", "assistant", "user")
    ]
    assert bodies[1]["messages"][2]["content"].strip() == text


@pytest.mark.parametrize("key", [False, True])
def test_stop(page: Any, server: LiveServer, monkeypatch: pytest.MonkeyPatch, key: bool) -> None:
    # Long enough to be stopped: the server goes on after the end of the answer, and takes its time.
    slow_steps(monkeypatch, server.model, 0.05)

    def longer(route: Any) -> None:
        body = {**route.request.post_data_json, "ignore_eos": True}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", longer)
    page.fill("#text", "Tell me a story.")
    page.press("#text", "Enter")
    page.wait_for_selector("article.assistant .content p, article.assistant details")
    if key:
        page.keyboard.press("Escape")
    else:
        page.click("#stop")
    page.wait_for_selector("#send:visible")
    assert page.locator(".note").inner_text() == "stopped"
    server.check_idle()


def test_errors_are_shown(page: Any) -> None:
    page.fill("#temperature", "-1")
    box = ask(page, "Hello")
    shown = box.locator("[role=alert]").inner_text()
    assert "400" in shown and "temperature" in shown


def test_model_text_is_never_markup(page: Any) -> None:
    evil = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> **bold** `<b>`'
    delta = {"choices": [{"index": 0, "delta": {"content": evil + "\n```py\n<i>\n```"}}]}
    text = f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=text),
    )
    box = ask(page, "Hello")
    content = box.locator(".content")
    assert content.locator("img, script, b, i").count() == 0
    assert content.locator("strong").inner_text() == "bold"
    assert content.locator("code").inner_text() == "<b>"
    assert content.locator("pre").inner_text() == "<i>"
    assert page.evaluate("window.hit") is None


def test_key(browser: Any, make_server: Callable[..., LiveServer]) -> None:
    page = browser.new_page()
    page.goto(make_server(api_key="a-key").url)
    assert "401" in ask(page, "Hello").locator("[role=alert]").inner_text()
    page.click("#settings summary")
    page.fill("#key", "a-key")
    assert ask(page, "What is the capital of France?").locator(".content").inner_text()
    page.close()
