"""Pages of other origins: refused unless --cors-origin names theirs."""

from __future__ import annotations

from pathlib import Path

import httpx
from test_launch import launched

ALLOWED, OTHER = "https://app.example", "https://evil.example"


def preflight(url: str, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return httpx.options(f"{url}/v1/chat/completions", headers=headers)


def test_named_origins(tmp_path: Path) -> None:
    """Preflights carry no key; answers need one; errors can be read by the page as well."""
    second = "http://localhost:5173"
    arguments = ("--cors-origin", ALLOWED, "--cors-origin", second, "--api-key", "k1y")
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    with launched(tmp_path / "log", *arguments) as (_, url):
        for origin in (ALLOWED, second):
            answer = preflight(url, origin)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin
            assert "POST" in answer.headers["access-control-allow-methods"]
            assert "authorization" in answer.headers["access-control-allow-headers"]
            for key, status in (("k1y", 200), ("wrong", 401)):
                headers = {"Origin": origin, "Authorization": f"Bearer {key}"}
                answer = httpx.post(
                    f"{url}/v1/chat/completions", json=body, headers=headers, timeout=20
                )
                assert answer.status_code == status
                assert answer.headers["access-control-allow-origin"] == origin
                assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        answer = preflight(url, OTHER)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers
        headers = {"Origin": OTHER, "Authorization": "Bearer k1y"}
        answer = httpx.get(f"{url}/v1/models", headers=headers)
        assert "access-control-allow-origin" not in answer.headers


def test_off_by_default(tmp_path: Path) -> None:
    with launched(tmp_path / "log") as (_, url):
        answer = preflight(url, ALLOWED)
        assert answer.status_code == 405
        assert not any(name.startswith("access-control") for name in answer.headers)
        answer = httpx.get(f"{url}/health", headers={"Origin": ALLOWED})
        assert not any(name.startswith("access-control") for name in answer.headers)
