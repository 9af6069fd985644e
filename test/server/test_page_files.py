"""The chat page's files: how they are sent, and what is never in them. Needs no browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
from infinicore_infer.server import page
from serving import LiveServer

STATIC = Path(page.__file__).parent / "static"
# What would let text become markup or code, or the page reach another place.
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    r"|setHTML|srcdoc|\beval\b|new Function|\.src\b|@import|url\(|\son\w+=|style="
)
ELSEWHERE = re.compile(r"https?://[\w.]+")
NAMESPACES = {"http://www.w3.org", "https://www.w3.org"}


def paths(html: str) -> list[str]:
    return re.findall(r'(?:href|src)="(page/[^"]+)"', html)


def test_headers(server: LiveServer) -> None:
    response = httpx.get(server.url)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy
    assert response.headers["cache-control"] == "no-cache"
    again = httpx.get(server.url, headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert httpx.get(server.url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_files_are_kept_by_browsers_until_they_change(server: LiveServer) -> None:
    found = paths(httpx.get(server.url).text)
    assert len(found) > 5
    for path in found:
        response = httpx.get(f"{server.url}/{path}")
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        assert response.headers["content-type"].startswith(kind[path.rpartition(".")[2]])
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.headers["x-content-type-options"] == "nosniff"
        name = path.split("/", 2)[2]
        assert response.content == (STATIC / name).read_bytes()


def test_other_names_are_not_found(server: LiveServer) -> None:
    digest = paths(httpx.get(server.url).text)[0].split("/")[1]
    for path in (
        f"page/{digest}/none.js",
        f"page/{digest}/index.html",
        f"page/{digest}/..%2f..%2fpage.py",
        f"page/{digest}/",
        "page/0000000000000000/main.js",
    ):
        response = httpx.get(f"{server.url}/{path}")
        assert response.status_code == 404, path
        assert response.json()["error"]["code"] == "not_found"


def test_no_key_is_needed_for_the_page_alone(make_server: Callable[..., LiveServer]) -> None:
    url = make_server(api_key="a-key").url
    html = httpx.get(url)
    assert html.status_code == 200
    assert all(httpx.get(f"{url}/{path}").status_code == 200 for path in paths(html.text))
    assert httpx.get(f"{url}/v1/models").status_code == 401


def test_sources_make_no_markup_and_reach_no_other_place() -> None:
    files = [path for path in STATIC.rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        text = path.read_text("utf-8")
        code = re.sub(r"^\s*(?://|/?\*).*$", "", text, flags=re.MULTILINE)
        assert not FORBIDDEN.search(code), path
        assert {match for match in ELSEWHERE.findall(code)} <= {"http://www.w3.org"}, path
        assert len(text.splitlines()) <= 300, path


def test_modules_that_are_imported_exist() -> None:
    for path in STATIC.rglob("*.js"):
        for name in re.findall(r'from "([^"]+)"', path.read_text("utf-8")):
            assert name.startswith(".") and (path.parent / name).resolve().is_file(), (path, name)


def test_modules_import_what_they_may() -> None:
    """As docs/architecture.md says."""
    allowed = {"view": {"view", "chat", "markdown"}, "chat": {"chat"}, "markdown": {"markdown"}}
    for folder, others in allowed.items():
        for path in (STATIC / folder).glob("*.js"):
            for name in re.findall(r'from "([^"]+)"', path.read_text("utf-8")):
                target = (path.parent / name).resolve().relative_to(STATIC)
                assert target.parts[0] in others | {"dom.js", "icons.js"}, (path, name)
