"""The chat page: its files, which need nothing but this server.

All files but the first are under a name made of their contents: browsers keep them forever, and a
new version has new names. No module is built or packed: what is in ``static`` is what is sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from starlette.responses import Response

# Where the files are served; the page has no key when it asks for them.
FILES = "/page/"
_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles of this server only, and no markup from strings: browsers with trusted types
# refuse innerHTML and its like, whatever is assigned.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "script-src 'self'",
        "style-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class _Page:
    """The files as they are sent.

    Attributes:
        digest: Of all files.
        files: Contents by path, but for the first.
        html: The first.
    """

    digest: str
    files: dict[str, bytes]
    html: bytes


@lru_cache(maxsize=1)
def _read() -> _Page:
    files = {
        path.relative_to(_FOLDER).as_posix(): path.read_bytes()
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _TYPES
    }
    hashed = hashlib.sha256()
    for name, content in files.items():
        hashed.update(f"{name} {len(content)} ".encode() + content)
    digest = hashed.hexdigest()[:16]
    html = files.pop("index.html").replace(b"{page}", f"{FILES[1:]}{digest}".encode())
    return _Page(digest, files, html)


def chat_page(known: str) -> Response:
    """Return the page; it holds nothing secret, the key is asked for by the page itself.

    Args:
        known: The ``If-None-Match`` of the request: what the browser has already.
    """
    page = _read()
    tag = f'"{page.digest}"'
    headers = {
        **_HEADERS,
        "Content-Security-Policy": _POLICY,
        "Cache-Control": "no-cache",
        "ETag": tag,
    }
    if tag in known:
        return Response(b"", 304, headers)
    return Response(page.html, 200, headers, _TYPES[".html"])


def page_file(digest: str, name: str) -> Response | None:
    """Return a file of the page, or ``None`` if there is none of that name.

    Args:
        digest: The version that is asked for.
        name: Its path.
    """
    page = _read()
    content = page.files.get(name)
    if content is None or digest != page.digest:
        return None
    headers = {**_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
    return Response(content, 200, headers, _TYPES[Path(name).suffix])
