"""The chat page's markdown, rendered in headless Chromium, next to markdown-it's."""

from __future__ import annotations

import html
import itertools
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from browsing import open_page
from markdown_it import MarkdownIt
from serving import LiveServer

KEPT = {
    *("p", "em", "strong", "del", "a", "br", "hr", "blockquote", "code", "pre"),
    *("ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"),
    *("h1", "h2", "h3", "h4", "h5", "h6"),
}
VOID = {"br", "hr", "img", "input", "path"}


class Shape(HTMLParser):
    """What markup says, without what only this page or only markdown-it has."""

    def __init__(self, markup: str, ours: bool) -> None:
        super().__init__()
        self.ours = ours
        self.items: list[Any] = []
        self.hidden = self.pre = 0
        self.feed(markup)
        self.close()

    def _name(self, tag: str) -> str:
        if tag[0] == "h" and tag[1:].isdigit():
            # The page's own headings take two levels, so its lowest three are one.
            return f"h{int(tag[1]) - 2 if self.ours else min(4, int(tag[1]))}"
        return {"s": "del"}.get(tag, tag)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden += tag == "figcaption"
        if self.hidden or tag not in KEPT | {"s"}:
            return
        self.pre += tag == "pre"
        given = dict(attrs)
        shown = {name: given[name] for name in ("href", "title", "start") if name in given}
        if tag in ("th", "td"):
            style = given.get("style") or given.get("class") or ""
            shown["align"] = style.removeprefix("text-align:")
        self.items.append((self._name(tag), shown))

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag == "figcaption"
        self.pre -= tag == "pre"
        if not self.hidden and tag in KEPT | {"s"} and tag not in VOID:
            self.items.append(f"/{self._name(tag)}")

    def handle_data(self, data: str) -> None:
        if self.hidden:
            return
        text = data if self.pre else " ".join(data.split())
        if self.items and isinstance(self.items[-1], list):
            self.items[-1].append(data)
        elif text:
            self.items.append([data])

    def shape(self) -> list[Any]:
        result: list[Any] = []
        pre = False
        for item in self.items:
            if not isinstance(item, list):
                pre = item[0] == "pre" if isinstance(item, tuple) else pre and item != "/pre"
                result.append(item)
                continue
            text = "".join(item)
            # Ends of lines are shown, here by style; a block of code's last one is not.
            text = text.rstrip("\n") if pre else " ".join(text.split())
            if text:
                result.append(text)
        return result


def reference(text: str) -> list[Any]:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return Shape(parser.render(text), False).shape()


@pytest.fixture(scope="module")
def lab(browser: Any, shared_server: LiveServer) -> Iterator[Any]:
    """The page, with its markdown modules at hand as ``window.lab``."""
    with open_page(browser, shared_server.url) as page:
        page.evaluate(
            """async () => {
                const main = document.querySelector("script[type=module]").src;
                const base = main.replace("main.js", "");
                const { MarkdownView, renderMarkdown } = await import(`${base}markdown/stream.js`);
                const { highlighter } = await import(`${base}markdown/highlight.js`);
                const whole = (text) => renderMarkdown(document.createElement("div"), text);
                window.lab = { MarkdownView, whole, highlighter };
            }"""
        )
        yield page


def rendered(lab: Any, texts: list[str]) -> list[str]:
    """Returns what becomes of texts, as markup."""
    found: list[str] = lab.evaluate(
        "(texts) => texts.map((text) => lab.whole(text).innerHTML)", texts
    )
    return found


def compare(lab: Any, texts: list[str]) -> None:
    for text, markup in zip(texts, rendered(lab, texts), strict=True):
        assert Shape(markup, True).shape() == reference(text), text


CASES = [
    "# One\n\n## Two ##\n\n#### Four\ntext\n#no heading",
    "Over\n====\n\nUnder\n---\n\nand\nmore\n---\n",
    "a *b* **c** ***d*** _e_ __f__ ~~g~~ snake_case_name 2*3*4 **b**c",
    "**a *b** c* *a **b* c** ** no ** *a*b*c* ****x**** *(**a**)*",
    "`code` ``a ` b`` ` `` ` `unclosed *em*",
    "- a\n- b\n  - c\n    1. d\n    2. e\n  - f\n- g",
    "1. a\n2. b\n\n3. c\n\n7) d\n8) e",
    "3. a\n   b\n\n   c\n\n       code\n4. d",
    "- a\n\n  b\n- c\n\n\n- d\n* e",
    '- [link](https://a.example/x?y=1&z=2 "t")\n- <https://b.example>\n- [x](<https://c.example/a>)',
    "> a\n> b\nlazy\n\n> - c\n>   d\n> > e\n\nf",
    "```python\nx = 1\n\n  y\n```\nafter\n~~~\n```\n~~~",
    "- a\n  ```js\n  let x\n\n    y\n  ```\n- b\n\n      indented",
    "| a | b | c |\n|:--|:-:|--:|\n| 1 | *2* | `3` |\n| \\| | | x | y |\nend\n\nno | table",
    "text\n| a | b |\n|---|---|\n| 1 |\n\n| a | b |\n|---|\n",
    "a  \nb\\\nc\nd",
    "\\*a\\* \\_b\\_ \\# \\q &amp; &lt;b&gt; &copy; &#65; &#x42; &nope; &",
    "***\n---\n_ _ _\n- - -\n--\n**",
    "    indented\n\n    more\n\ntext\n    not code",
    "[a](b c) [d](https://x.example (e)) [f] [g]( https://y.example ) ![h",
    "[a [b](https://x.example) c](d)",
    "1. a\n\n   - b\n\n     c\n\n2. d",
    "* a\n+ b\n- c\n\n1. x\n1) y",
    "**Überschrift:** *naïve* **«x»** 你好**世界**你好 **强调。**后面",
    "- a\n-\n- b\n\n-\n\n  c",
    "#\n## \n###### six\n####### seven",
    "> ```\n> code\noutside",
    "10. ten\n    - nested\n\n    para\n11. eleven",
    "a\n1. one\n\na\n2. two\n- dash",
]


def test_as_markdown_it(lab: Any) -> None:
    compare(lab, CASES)


# Lines that change each other's meaning.
LINES = """
# h;## *h* x;text here;*em* and **strong**;`code`;- a;- b;  - nested;   three;    four
        eight;1. one;2. two;   1. in;* star;+ plus;> quote;> - q list;> > deep;>;---;***
===;```;```py;~~~;|a|b|;|-|-|;|1|2|;a_b_c;__x__ *y;**;*;`;line  ;back\\
[l](https://x.example);<b>;&amp;;-;1.;\t tab;- \tx;;;;;
""".strip("\n").replace("\n", ";")


def test_random_lines_as_markdown_it(lab: Any) -> None:
    rng = random.Random(20)
    lines = LINES.split(";")
    texts = ["\n".join(rng.choices(lines, k=rng.randint(2, 9))) for _ in range(500)]
    compare(lab, texts)


def test_random_marks_as_markdown_it(lab: Any) -> None:
    rng = random.Random(21)
    marks = ["*", "**", "_", "__", "`", "``", " ", "a", "b", ".", "[", "](x y", "ü", "\\", "\n"]
    texts = ["x" + "".join(rng.choices(marks, k=rng.randint(3, 16))) for _ in range(500)]
    # That opens a formula here.
    compare(lab, [text for text in texts if "\\[" not in text])


def test_what_is_ours(lab: Any) -> None:
    """Beyond CommonMark: addresses, tasks, line breaks, formulas, pictures that are not fetched."""
    pairs = [
        ("see https://a.example/b_c_(d)?e=f. (https://g.example)", "https://a.example/b_c_(d)?e=f"),
        ("- [x] done\n- [ ] open", "<input"),
        ("| a |\n|---|\n| b<br>c |", "<br>"),
        ("![a *b*](https://x.example/i.png)", "a <em>b</em></a>"),
        ("price $5 and $10, $x^2_i$ and \\(a*b*c\\)", "<msubsup>"),
        ("$$\na_1 * b_1 * c\n$$", "a_1 * b_1 * c"),
        ("\\[\n\\frac{a}{b}\n\\]", "<mfrac>"),
    ]
    found = rendered(lab, [text for text, _ in pairs])
    for (text, part), markup in zip(pairs, found, strict=True):
        assert part in markup, text
    assert 'href="https://g.example"' in found[0] and found[0].count("<a ") == 2
    assert found[1].count("checked") == 0 and found[1].count("disabled") == 2
    assert "<img" not in found[3] and 'class="picture"' in found[3]
    assert found[4].count('class="math"') == 2 and "<em>" not in found[4]


FORMULAS = {
    r"a^2 + b_{ij} - 3.14": "<msup>a 2</msup> + <msub>b i j</msub> − 3.14",
    r"\frac{-b \pm \sqrt{x}}{2a}": "<mfrac>− b ± <msqrt>x</msqrt> 2 a</mfrac>",
    r"\frac12 x^10": "<mfrac>1 2</mfrac> <msup>x 1</msup> 0",
    r"\sum_{n=1}^\infty n": "<munderover>∑ n = 1 ∞</munderover> n",
    r"\int_0^1 \alpha\,dx": "<msubsup>∫ 0 1</msubsup> α d x",
    r"\lim_{x \to 0} \sin x": "<munder>lim x → 0</munder> sin x",
    r"\sqrt[3]{8} \le \mathbb{R}": "<mroot>8 3</mroot> ≤ ℝ",
    r"\left( \frac{a}{b} \right]": "( <mfrac>a b</mfrac> ]",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}": (
        "( <mtable><mtr><mtd>1</mtd><mtd>2</mtd></mtr>"
        "<mtr><mtd>3</mtd><mtd>4</mtd></mtr></mtable> )"
    ),
    r"f'(x) = \text{if } \hat{y}": "<msup>f ′</msup> ( x ) = if\u00a0 <mover>y ^</mover>",
    r"a < b \land \mathbf{x} \mid 50\%": "a < b ∧ 𝐱 ∣ 50 %",
}
# Half understood is worse than not at all.
SOURCES = [
    *(r"\foo{x}", r"\frac{a}", "a^b^c", "x_", "{a", "a}", r"\left( a", r"\begin{foo}a\end{foo}"),
    *(r"\begin{pmatrix} 1", r"\text{a", "\\", "&", "^2", r"\mathbf{\alpha}", r"\right)", "#"),
    *("{" * 1000 + "a" + "}" * 1000, "x" * 5000, r"\sqrt" * 500 + "x"),
]


def test_formulas(lab: Any) -> None:
    found = lab.evaluate(
        """(sources) => sources.map((source) => {
            const math = lab.whole(`$$\\n${source}\\n$$`).querySelector("div.math");
            const markup = math.querySelector("math")?.innerHTML;
            return { markup, text: math.textContent };
        })""",
        [*FORMULAS, *SOURCES],
    )
    leaf = re.compile(r"<(mi|mo|mn|mtext)(?: [^>]*)?>(.*?)</\1>")
    for item, (source, expected) in zip(found, FORMULAS.items(), strict=False):
        bare = leaf.sub(lambda match: f" {match[2]} ", item["markup"] or "")
        bare = re.sub(r"</?mrow[^>]*>|<mspace[^>]*></mspace>", "", bare)
        bare = re.sub(r"<(\w+)[^>]*>", r"<\1>", bare)
        shape = re.sub(r" *(</?\w+>) *", r"\1", html.unescape(re.sub(" +", " ", bare))).strip()
        assert shape == re.sub(r" *(</?\w+>) *", r"\1", expected), source
    for item, source in zip(found[len(FORMULAS) :], SOURCES, strict=True):
        assert item == {"text": source} or item == {"text": source, "markup": None}, source


EVIL = [
    '<img src=x onerror="hit()"><script>hit()</script><svg onload=hit()><iframe srcdoc="x">',
    "[a](javascript:hit()) [b](JaVaScRiPt:hit()) [c](java\nscript:hit()) [d](\tjavascript:hit())",
    "[e](&#106;avascript:hit()) [f](<javascript:hit()>) [g](data:text/html,<script>hit()</script>)",
    "<javascript:hit()> [h](vbscript:hit()) [i](file:///etc/passwd) [j](blob:x) [k](//x.example)",
    '[l](https://x.example" onmouseover="hit()) [m](https://x.example "t\\" onclick=\\"hit()")',
    '```"><img src=x onerror=hit()>\n</code></pre><script>hit()</script>\n```',
    "```html\n<script>hit()</script>\n```",
    "| <b>a</b> |\n|---|\n| <img src=x onerror=hit()> |",
    "![x](javascript:hit()) ![<script>](https://x.example/<script>)",
    "$<img src=x onerror=hit()>$ \\(<script>hit()</script>\\)",
    "`<img src=x onerror=hit()>` **<b onclick=hit()>** # <i>",
    "[x](https://x.example/%0d%0a<script>) &lt;script&gt;hit()&lt;/script&gt; &#60;img&#62;",
    '<https://x.example/"onclick=hit()> \u202e<script>\u0000</script>',
]


def test_nothing_a_model_writes_is_markup(lab: Any) -> None:
    found = lab.evaluate(
        """async (texts) => {
            window.hits = 0;
            window.hit = () => window.hits++;
            const box = document.body.appendChild(document.createElement("div"));
            const found = { tags: new Set(), attributes: new Set(), hrefs: [] };
            for (const text of texts) {
                const made = lab.whole(text);
                box.append(made);
                for (const element of made.querySelectorAll("*")) {
                    found.tags.add(element.localName);
                    for (const { name } of element.attributes) found.attributes.add(name);
                    if (element.href) found.hrefs.push(element.href);
                    element.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
                }
            }
            await new Promise((done) => setTimeout(done, 200));
            box.remove();
            return { ...found, tags: [...found.tags], attributes: [...found.attributes], hits };
        }""",
        EVIL,
    )
    ours = {"div", "span", "figure", "figcaption", "button", "svg", "path", "input"}
    formulas = {"math", "mrow", "mi", "mo", "mn"}
    assert set(found["tags"]) <= KEPT | ours | formulas
    assert not [name for name in found["attributes"] if name.startswith("on") or name == "style"]
    assert "src" not in found["attributes"] and "srcdoc" not in found["attributes"]
    assert found["hrefs"] and all(href.startswith("https://x.example") for href in found["hrefs"])
    assert found["hits"] == 0


DOCUMENT = "\n\n".join(CASES)


def test_a_growing_text_becomes_what_the_whole_one_is(lab: Any) -> None:
    texts = [*CASES, DOCUMENT]
    wrong = lab.evaluate(
        """(texts) => texts.filter((text) => {
            const view = new lab.MarkdownView(document.createElement("div"));
            let size = 0;
            for (let at = 0; at < text.length; at += 1 + (size++ % 7))
                view.update(text.slice(0, at), true);
            view.update(text, false);
            view.update(text, false);
            return view.element.innerHTML !== lab.whole(text).innerHTML;
        })""",
        texts,
    )
    assert wrong == []


def test_what_is_complete_is_not_touched_again(lab: Any) -> None:
    """Else a selection would be lost, and the time would be quadratic."""
    touched = lab.evaluate(
        """async (text) => {
            const box = document.body.appendChild(document.createElement("div"));
            const view = new lab.MarkdownView(box);
            const touched = [];
            const seen = new Map();
            const watch = new MutationObserver((records) => {
                for (const { target } of records) {
                    let top = target;
                    while (top.parentNode && top.parentNode !== box) top = top.parentNode;
                    const complete = top !== box && top.nextSibling && seen.has(top);
                    if (complete) touched.push(top.outerHTML);
                }
            });
            const all = { childList: true, characterData: true, attributes: true };
            watch.observe(box, { ...all, subtree: true });
            for (let at = 0; at <= text.length; at += 3) {
                view.update(text.slice(0, at), true);
                await Promise.resolve();
                for (const child of box.children) if (child.nextSibling) seen.set(child);
            }
            watch.disconnect();
            box.remove();
            return touched;
        }""",
        DOCUMENT,
    )
    assert touched == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- item *one*\n" * 9, "li"),
        ("1. a\n   - b\n" * 9, "li"),
        ("| a | b |\n|---|---|\n" + "| *1* | 2 |\n" * 9, "tbody tr"),
    ],
)
def test_lists_and_tables_grow_at_their_end(lab: Any, text: str, part: str) -> None:
    touched = lab.evaluate(
        """([text, part]) => {
            const box = document.createElement("div");
            const view = new lab.MarkdownView(box);
            const watch = new MutationObserver(() => {});
            const all = { childList: true, characterData: true, attributes: true };
            let first = null;
            for (let at = 0; at <= text.length; at += 2) {
                view.update(text.slice(0, at), true);
                const parts = box.querySelectorAll(part);
                if (first || parts.length < 3) continue;
                first = parts[0];
                watch.observe(first, { ...all, subtree: true });
            }
            view.update(text, false);
            const same = first === box.querySelector(part);
            return [same, watch.takeRecords().length, box.innerHTML === lab.whole(text).innerHTML];
        }""",
        [text, part],
    )
    assert touched == [True, 0, True]


def test_marks_that_are_half_written_do_not_flicker(lab: Any) -> None:
    """What is shown while bold print, code or a table is written is never taken back."""
    text = "Some **bold words** and `code` here.\n\n"
    text += "| a | b |\n|---|---|\n| 1 | 2 |\n\n- item\n\n---\n\nEnd"
    shown = lab.evaluate(
        """(text) => {
            const view = new lab.MarkdownView(document.createElement("div"));
            return Array.from(text, (_, i) => {
                view.update(text.slice(0, i + 1), true);
                return view.element.textContent;
            });
        }""",
        text,
    )
    for before, after in itertools.pairwise(shown):
        assert after.startswith(before)
    assert shown[-1].startswith("Some bold words and code here.")


# Each takes minutes where the time is quadratic; the browser's limit is seconds.
LONG = {
    "emphasis": "*a " * 33000,
    "closers": "a* " * 33000,
    "pairs": "*a _b " * 16000 + "c_ d* " * 16000,
    "brackets": "[" * 100000,
    "pictures": "![" * 50000 + "]" * 50000,
    "links": "[a](" * 25000,
    "ticks": "".join("`" * (i % 400) + " " for i in range(500)),
    "quotes": "> " * 50000,
    "items": "- " * 50000,
    "dollars": "$a " * 33000,
    "formulas": "\\(" * 50000,
    "angles": "<a" * 50000,
    "entities": "&a" * 50000,
    "addresses": "http://" * 14000,
    "bars": "|" * 50000 + "\n" + "|-" * 25000,
    "spaces": "a" + " " * 100000 + "b",
    "hashes": "# " + " #" * 50000,
    "lines": "line\n" * 20000,
    "code": "```py\n" + "x = 'a' # b\n" * 8000,
    "string": "```js\n" + "`" + "a\\" * 50000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_texts(lab: Any, name: str) -> None:
    length = lab.evaluate("(text) => lab.whole(text).textContent.length", LONG[name])
    assert length > len(LONG[name]) / 4 or name in ("quotes", "items", "bars")


PROGRAMS = {
    "python": "# note 'x'\ndef f(a: int = 1) -> str:\n    '''doc # no\n    more \"x\"'''\n"
    "    return f\"a\" + 'b\\'c' # end\n",
    "javascript": '// note "x"\nconst a = `t\nmore`; /* b\nc */ let d = \'e\\\'f\' + "g";\n',
    "c": '#include <x.h>\n/* a "b"\n*/ int main(void) { char *s = "c // d"; return \'e\'; } // f\n',
    "rust": "// a\nfn f<'a>(s: &'a str) -> char { let t = \"b /* c */\"; 'd' } /* e\nf */\n",
    "go": 'package main // a\nvar s = `b\n// c`\nvar t = "d\\"e" /* f */\n',
    "bash": "# a 'b'\necho \"c # d\" 'e' f#g # h\n",
    "sql": "-- a 'b'\nSELECT 'c -- d' FROM e /* f */ WHERE g = 1;\n",
    "yaml": "# a\nb: 'c # d' # e\n",
}


def test_highlighting_knows_comments_and_strings_as_pygments_does(lab: Any) -> None:
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Comment, String

    for name, program in PROGRAMS.items():
        pieces = lab.evaluate(
            """([name, text]) => {
                const { highlight } = lab.highlighter(name);
                let state = null;
                return text.split("\\n").flatMap((line) => {
                    const read = highlight(line, state);
                    state = read.state;
                    return [...read.pieces, ["", "\\n"]];
                });
            }""",
            [name, program.removesuffix("\n")],
        )
        assert "".join(text for _, text in pieces) == program
        ours = [kind for kind, text in pieces for _ in text]
        lexed = get_lexer_by_name(name).get_tokens(program)
        theirs = [kind for kind, text in lexed for _ in text]
        for i, char in enumerate(program):
            # Letters before a string, and lines of the preprocessor, are a matter of taste.
            if char.isspace() or "Preproc" in str(theirs[i]) or "Affix" in str(theirs[i]):
                continue
            expected = (
                "comment" if theirs[i] in Comment else "string" if theirs[i] in String else "code"
            )
            found = ours[i] if ours[i] in ("comment", "string") else "code"
            assert found == expected, (name, program[:i], char)
