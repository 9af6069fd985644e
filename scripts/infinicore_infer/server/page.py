"""The chat page: one file, which needs nothing but this server."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

from starlette.responses import Response

_FILE = Path(__file__).parent / "static" / "chat.html"


def _hashes(page: str, tag: str) -> str:
    """Return what allows the page's own scripts or styles, and no other."""
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (hashlib.sha256(part.encode()).digest() for part in parts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


@lru_cache(maxsize=1)
def _read() -> tuple[bytes, dict[str, str]]:
    page = _FILE.read_text("utf-8")
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
        f"script-src {_hashes(page, 'script')}",
        f"style-src {_hashes(page, 'style')}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return page.encode(), headers


def chat_page() -> Response:
    """Return the page; it holds nothing secret, the key is asked for by the page itself."""
    page, headers = _read()
    return Response(page, 200, headers, "text/html; charset=utf-8")
