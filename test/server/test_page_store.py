"""What the chat page keeps in the browser, in headless Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browsing import answer_with, answered, ask, events, open_page, visit, wait_count, watch
from serving import LiveServer, slow_steps

FORBIDDEN = """
    for (const name of ["localStorage", "sessionStorage", "indexedDB"])
        Object.defineProperty(window, name, {
            get() { throw new DOMException("storage is forbidden", "SecurityError"); },
        });
"""
FULL = """
    IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError"); };
"""


def titles(page: Any) -> list[str]:
    found: list[str] = page.locator("#list .entry .title").all_inner_texts()
    return found


def export(page: Any, name: str) -> str:
    """Saves the conversation that is shown; returns what the file says."""
    page.locator("#head").get_by_label("Actions for this conversation").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name=name).click()
    return Path(download.value.path()).read_text("utf-8")


def conversation(messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Returns a file of one conversation, whose messages follow each other."""
    filled = [
        {"id": f"m{i:05}", "parent": f"m{i - 1:05}" if i else None, **message}
        for i, message in enumerate(messages)
    ]
    record = {"title": "Imported", "system": "", "messages": filled, **fields}
    return {"format": "infinicore_infer.chat", "version": 1, "conversations": [record]}


def load(page: Any, value: Any) -> None:
    """Has a file imported."""
    text = value if isinstance(value, str) else json.dumps(value)
    file = {"name": "chats.json", "mimeType": "application/json", "buffer": text.encode()}
    page.keyboard.press("Control+,")
    page.set_input_files("#import", file)
    page.wait_for_selector(".toast")


def test_conversations_are_there_again(page: Any) -> None:
    answer_with(page, [events({"content": f"Answer {i}"}) for i in range(9)])
    ask(page, "About apples")
    page.keyboard.press("Control+Shift+O")
    ask(page, "About pears")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    # The address says which one it was.
    assert page.locator("#title").inner_text() == "About pears"
    assert titles(page) == ["About pears", "About apples"]
    page.locator("#list .entry").last.click()
    page.wait_for_selector(".markdown:has-text('Answer 0')")
    page.go_back()
    page.wait_for_selector(".markdown:has-text('Answer 1')")
    # Rename, by keyboard; search in titles and in messages.
    page.locator("#list .entry").first.focus()
    page.keyboard.press("F2")
    page.keyboard.type("Fruit <b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#list .entry:has-text('Fruit <b>')")
    page.wait_for_selector("#title:text-is('Fruit <b>')")
    page.fill("#search", "frûit")
    wait_count(page, "#list .entry", 1)
    page.fill("#search", "answer 0")
    page.wait_for_selector("#list .entry:has-text('About apples') .excerpt")
    page.fill("#search", "")
    # Delete, with undo.
    wait_count(page, "#list .entry", 2)
    page.locator("#list .entry").last.focus()
    page.keyboard.press("Delete")
    wait_count(page, "#list .entry", 1)
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector("#list .entry:has-text('About apples')")
    page.locator("#list .entry").last.click()
    page.wait_for_selector(".markdown:has-text('Answer 0')")


def test_export_and_import(page: Any) -> None:
    broken = "half \ud83d of a pair, مرحبا, 😀"
    answer_with(page, [events({"reasoning_content": "Hm."}, {"content": "One **1**."})] * 3)
    page.evaluate("(text) => { document.querySelector('#text').value = text; }", broken)
    page.press("#text", "Enter")
    answered(page).get_by_label("Another answer").click()
    answered(page)
    kept = json.loads(export(page, "Save as JSON"))
    assert kept["format"] == "infinicore_infer.chat"
    messages = kept["conversations"][0]["messages"]
    assert sorted(message["role"] for message in messages) == ["assistant", "assistant", "user"]
    text = broken.replace("\ud83d", "\ufffd")
    assert [item["content"] for item in messages if item["role"] == "user"] == [text]
    assert export(page, "Save as Markdown").endswith(
        f"## You\n\n{text}\n\n## qwen3-tiny\n\nOne **1**.\n"
    )
    page.get_by_label("Actions for this conversation").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.wait_for_selector("#list .none")
    load(page, kept)
    page.wait_for_selector(".message.assistant .pager:has-text('2 / 2')")
    assert page.locator(".thought").text_content() == "Hm."
    again = json.loads(export(page, "Save as JSON"))["conversations"][0]["messages"]
    shown = ("role", "content", "thinking", "state", "stats", "model", "created")
    before, after = (
        [[item.get(name) or None for name in shown] for item in items]
        for items in (messages, again)
    )
    assert before == after


WRONG = [
    ("[1, 2", "no JSON"),
    ('{"conversations": []}', "not exported by this page"),
    (conversation([{"role": "robot", "content": "x"}]), "robot"),
    (conversation([{"role": "user", "content": 7}]), "no text"),
    ({"format": "infinicore_infer.chat", "conversations": [{}]}, "no messages"),
]


def test_wrong_files_are_refused_in_words(page: Any) -> None:
    for value, words in WRONG:
        load(page, value)
        page.wait_for_selector(f".toast:has-text('{words}')")
    assert titles(page) == []
    # What could come from anywhere is text like any other, and circles end.
    evil = conversation([{"role": "user", "content": "<img src=x>", "parent": "m00001"}] * 2)
    load(page, evil)
    page.wait_for_selector("#list .entry")


@pytest.mark.parametrize("script", [FORBIDDEN, FULL], ids=["forbidden", "full"])
def test_without_storage_it_works_and_says_so(
    browser: Any, server: LiveServer, script: str
) -> None:
    with open_page(browser, server.url, script=script) as page:
        answer_with(page, [events({"content": "Yes."})])
        ask(page, "One")
        notice = page.locator("#notice").inner_text()
        assert ("full" if script is FULL else "forbidden") in notice
        page.keyboard.press("Control+Shift+O")
        ask(page, "Two")
        assert titles(page) == ["Two", "One"]
        page.locator("#list .entry").last.click()
        page.wait_for_selector(".bubble:has-text('One')")
        page.fill("#search", "one")
        wait_count(page, "#list .entry", 1)


def test_what_did_not_fit_is_kept_once_there_is_room(browser: Any, server: LiveServer) -> None:
    script = """
        const put = IDBObjectStore.prototype.put;
        IDBObjectStore.prototype.put = function (...values) {
            if (!window.room) throw new DOMException("full", "QuotaExceededError");
            return put.apply(this, values);
        };
    """
    with open_page(browser, server.url, script=script) as page:
        answer_with(page, [events({"content": "Yes."})])
        ask(page, "One")
        assert page.locator("#notice").is_visible()
        page.evaluate("window.room = true")
        ask(page, "Two")
        page.wait_for_selector("#notice", state="hidden")
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert page.locator(".bubble").all_text_contents() == ["One", "Two"]


def test_deleting_a_conversation_that_is_being_answered(
    page: Any, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_steps(monkeypatch, server.model, 0.05)
    page.fill("#text", "Tell me a story.")
    page.press("#text", "Enter")
    page.wait_for_selector(".message.assistant .thinking:not([hidden])")
    page.get_by_label("Actions for this conversation").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.wait_for_selector("#list .none")
    ask(page, "Another one?")
    assert titles(page) == ["Another one?"]
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert titles(page) == ["Another one?"]


def test_two_tabs(page: Any, server: LiveServer) -> None:
    answer_with(page, [events({"content": "First tab."})])
    ask(page, "One")
    other = page.context.new_page()
    problems = watch(other, server.url)
    visit(other, page.url)
    assert other.locator(".message").count() == 2
    answer_with(other, [events({"content": "Second tab."})])
    ask(other, "Two")
    page.wait_for_selector(".markdown:has-text('Second tab.')")
    # Both go on from the same message: two versions, and nothing is lost.
    other.locator(".message.user").last.get_by_label("Edit and send again").click()
    other.locator(".editor textarea").fill("Two, again")
    other.keyboard.press("Enter")
    answered(other)
    page.wait_for_selector(".pager")
    other.get_by_label("Actions for this conversation").click()
    other.get_by_role("menuitem", name="Delete").click()
    page.wait_for_selector("#list .none")
    assert page.locator(".message").count() == 0
    other.keyboard.press("Control+,")
    other.check("input[name=theme][value=dark]")
    page.wait_for_selector("html[data-theme=dark]")
    assert problems == []


def test_page_that_is_closed_amid_an_answer(page: Any, server: LiveServer) -> None:
    load(
        page,
        conversation(
            [
                {"role": "user", "content": "A story?"},
                {"role": "assistant", "content": "Once upon", "thinking": "", "stats": {}},
            ]
        ),
    )
    page.wait_for_selector(".markdown")
    # As it is kept while it is written.
    page.evaluate(
        """() => new Promise((done) => {
            const write = (table, messages) => {
                const message = messages.find(({ role }) => role === "assistant");
                const saved = Date.now() - 60000;
                table.put({ ...message, state: "writing", saved }).onsuccess = () => done();
            };
            indexedDB.open("infinicore_infer.chat").onsuccess = ({ target }) => {
                const transaction = target.result.transaction("messages", "readwrite");
                const table = transaction.objectStore("messages");
                table.getAll().onsuccess = ({ target }) => write(table, target.result);
            };
        })"""
    )
    page.reload()
    page.wait_for_selector("[role=alert]:has-text('closed while')")
    bodies = answer_with(page, [events({"content": " a time."})])
    page.get_by_role("button", name="Continue").click()
    assert answered(page).locator(".markdown").inner_text() == "Once upon a time."
    assert bodies[0]["messages"][-1]["content"] == "Once upon"


def test_long_conversations_and_messages(page: Any) -> None:
    roles = ["user", "assistant"]
    texts = [{"role": roles[i % 2], "content": f"Message *{i}*"} for i in range(500)]
    load(page, conversation(texts))
    page.wait_for_selector(".message.assistant:has-text('Message 499')")
    # Not all are made at once; older ones come as they are scrolled to.
    assert page.locator(".message").count() < 100
    while page.locator(".message").count() < 500:
        count = page.locator(".message").count()
        page.evaluate("document.querySelector('#log').scrollTop = 0")
        page.locator(".message").nth(count).wait_for(state="attached")
    assert page.locator(".bubble").first.text_content() == "Message *0*"
    long = "word " * 20000
    bodies = answer_with(page, [events({"content": "**x** " * 17000})])
    box = ask(page, long)
    assert bodies[0]["messages"][-1]["content"] == long and len(bodies[0]["messages"]) == 501
    assert box.locator("strong").count() == 17000


def test_text_that_runs_from_right_to_left(page: Any) -> None:
    answer_with(page, [events({"content": "مرحبا بالعالم\n\n- واحد\n\nand `code`"})])
    box = ask(page, "שלום")
    direction = "(element) => getComputedStyle(element).direction"
    assert page.locator(".bubble").evaluate(direction) == "rtl"
    assert box.locator("p").first.evaluate(direction) == "rtl"
    assert box.locator("li").evaluate(direction) == "rtl"
    assert box.locator("p").last.evaluate(direction) == "ltr"
