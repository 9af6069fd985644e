"""How the chat page looks and reads: contrast, names of controls, motion."""

from __future__ import annotations

from typing import Any

import pytest
from browsing import answer_with, ask, events, open_page
from serving import LiveServer

SAMPLE = """# One

Text with `code`, a [link](https://a.example) and $x^2$.

> Quoted

| a | b |
|---|---|
| 1 | 2 |

```python
# comment
@wraps
def f(x: int) -> str:
    return "text" if x > 1 else None
```

```diff
@@ 1 @@
-old
+new
```
"""

# WCAG's contrast of every text that is seen with what is behind it.
CONTRASTS = """() => {
    const parse = (text) => {
        const numbers = text.match(/-?[\\d.]+(?:e-?\\d+)?/g).map(Number);
        const scale = text.startsWith("color(srgb") ? 255 : 1;
        const [r, g, b, a = 1] = numbers;
        return [r * scale, g * scale, b * scale, a];
    };
    const over = ([r, g, b, a], below) =>
        [r, g, b].map((part, i) => part * a + below[i] * (1 - a));
    const light = (rgb) => {
        const [r, g, b] = rgb.map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        if (!element) return [255, 255, 255];
        const own = parse(getComputedStyle(element).backgroundColor);
        return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement));
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const { parentElement: element, data } = walker.currentNode;
        if (!data.trim() || !element.checkVisibility({ opacityProperty: true })) continue;
        if (element.closest(":disabled, .unseen, noscript, .skip")) continue;
        const behind = ground(element);
        const values = [light(over(parse(getComputedStyle(element).color), behind)), light(behind)];
        const contrast = (Math.max(...values) + 0.05) / (Math.min(...values) + 0.05);
        found.push([contrast, data.trim().slice(0, 40), element.className]);
    }
    return found;
}"""

NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, a")]
    .filter((element) => element.checkVisibility() && !element.closest(".markdown"))
    .filter(({ textContent, ariaLabel }) => !textContent.trim() && !ariaLabel)
    .filter((element) => !element.labels?.length)
    .map((element) => element.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_names(browser: Any, server: LiveServer, scheme: str) -> None:
    options = {"color_scheme": scheme, "reduced_motion": "reduce"}
    with open_page(browser, server.url, **options) as page:
        thought = {"reasoning_content": "Hm."}
        answer_with(
            page,
            [
                events(thought, {"content": SAMPLE}),
                events({"content": "Half"}, end="", done=False),
                events({"content": "Cut"}, end="length"),
            ],
        )
        seen = []
        for _ in range(3):
            ask(page, "Question")
            page.locator(".message.assistant .copy").last.hover()
            for details in page.locator(".thinking:not([hidden])").all():
                details.evaluate("(element) => { element.open = true; }")
            seen += page.evaluate(CONTRASTS)
        for keys in ("Control+,", "?"):
            page.locator("#log").focus()
            page.keyboard.press(keys)
            seen += page.evaluate(CONTRASTS)
            assert page.evaluate(NAMELESS) == []
            page.keyboard.press("Escape")
        words = " ".join(text for _, text, _ in seen)
        for text in ("comment", "new", "Quoted", "Hm.", "broke off", "Cut off", "Preset", "Shift"):
            assert text in words
        assert [item for item in seen if item[0] < 4.5] == []
        # What else would breathe, holds still for those who ask for it.
        page.evaluate("document.querySelector('#status').dataset.state = 'loading'")
        moving = "document.getAnimations().length"
        assert page.evaluate(moving) == 0
        page.emulate_media(reduced_motion="no-preference")
        assert page.evaluate(moving) > 0
