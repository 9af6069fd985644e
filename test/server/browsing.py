"""The chat page in a browser: opening it, asking, and answers that are written by the test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SETTINGS = "infinicore_infer.settings"
GREEDY_SETTINGS = {"preset": "custom", "custom": {"temperature": 0}}
CHAT = "**/v1/chat/completions"


def watch(page: Any, url: str) -> list[str]:
    """Returns a list that requests beyond the server, console errors and exceptions go to."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda item: problems.append(item.text) if item.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((url, "data:", "blob:"))
            else problems.append(f"asked for {request.url}")
        ),
    )
    return problems


@contextmanager
def open_page(
    browser: Any,
    url: str,
    *,
    settings: Any = GREEDY_SETTINGS,
    script: str = "",
    **options: Any,
) -> Iterator[Any]:
    """Opens the page with settings and nothing else stored; problems of any kind fail the test.

    Options are those of the browser's context; the script runs before those of the page.
    """
    context = browser.new_context(**options)
    value = json.dumps(json.dumps(settings))
    context.add_init_script(
        f"if (!sessionStorage.seen) localStorage.setItem({json.dumps(SETTINGS)}, {value});"
        "sessionStorage.seen = 1;"
        if not script
        else script
    )
    page = context.new_page()
    page.set_default_timeout(15000)
    problems = watch(page, url)
    visit(page, url)
    yield page
    context.close()
    assert not [text for text in problems if "Failed to load resource" not in text]


def visit(page: Any, url: str) -> None:
    """Opens an address, or opens it again."""
    page.goto(url)
    page.wait_for_selector("html[data-ready]")


def ask(page: Any, text: str) -> Any:
    """Asks; returns the last message once it is complete."""
    page.fill("#text", text)
    page.press("#text", "Enter")
    return answered(page)


def answered(page: Any) -> Any:
    """Returns the last message once no answer is being written any more."""
    page.wait_for_selector(".message.assistant")
    page.wait_for_selector("#send:visible")
    # What has not been painted yet has no text that is seen.
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(".message.assistant").last


def wait_count(page: Any, selector: str, count: int) -> None:
    """Waits until there are so many. (The page's policy forbids playwright's own way.)"""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(count, timeout=15000)


def events(*deltas: Any, end: str = "stop", done: bool = True) -> str:
    """Returns a streamed answer."""
    choices: list[Any] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    if end:
        choices.append({"index": 0, "delta": {}, "finish_reason": end})
    text = "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices)
    return text + ("data: [DONE]\n\n" if done else "")


def answer_with(page: Any, answers: Sequence[str]) -> list[Any]:
    """Has the page get these answers, one after the other; returns where its requests go."""
    bodies: list[Any] = []

    def fulfill(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        text = answers[min(len(bodies), len(answers)) - 1]
        route.fulfill(content_type="text/event-stream", body=text)

    page.route(CHAT, fulfill)
    return bodies
