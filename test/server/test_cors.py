"""Pages of other origins: refused unless --cors-origin names theirs; names that are not ours."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from infinicore_infer.server.gate import refuse_host, refuse_origin
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


def test_pages_may_not_compute(tmp_path: Path) -> None:
    """What a browser sends without asking first; and a client that is none."""
    body = b'{"prompt": "Hi", "max_tokens": 1}'
    with launched(tmp_path / "log", "--cors-origin", ALLOWED) as (_, url):

        def send(path: str = "/v1/completions", **headers: str) -> httpx.Response:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            return httpx.post(url + path, content=body, headers=names, timeout=20)

        plain = {"content_type": "text/plain;charset=UTF-8"}
        for accepted in ({}, {"origin": ALLOWED}, {"origin": url}, {"sec_fetch_mode": "cors"}):
            assert send(**plain, **accepted).status_code == 200
        for refused in (
            {"origin": OTHER},
            {"origin": "null"},
            {"origin": OTHER, "sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "cross-site"},
        ):
            answer = send(**plain, **refused)
            error = answer.json()["error"]
            assert answer.status_code == 403 and error["code"] == "origin_not_allowed"
            assert error["type"] == "permission_error" and "--cors-origin" in error["message"]
            assert "access-control-allow-origin" not in answer.headers
        answer = send("/v1/messages", origin=OTHER)
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
        assert answer.json()["type"] == "error"


@pytest.mark.parametrize(
    ("host", "arguments", "allowed"),
    [
        ("evil.example:8000", (), False),
        ("evil.example", ("--api-key", "k"), True),
        ("evil.example", ("--api-key", "k", "--allowed-host", "proxy.example"), False),
        ("Proxy.example:8000", ("--allowed-host", "proxy.Example"), True),
        ("evil.example", ("--host", "0.0.0.0"), True),
    ],
)
def test_rebound_names(
    tmp_path: Path, host: str, arguments: tuple[str, ...], allowed: bool
) -> None:
    """A page whose name points here is of the same origin, so the name is what tells."""
    with launched(tmp_path / "log", *arguments) as (_, url):
        headers = {"Host": host, "Authorization": "Bearer k", "Origin": f"http://{host}"}
        for answer in (
            httpx.get(f"{url}/v1/models", headers=headers),
            httpx.post(f"{url}/tokenize", json={"prompt": "Hi"}, headers=headers),
        ):
            assert answer.status_code == (200 if allowed else 403)
            if not allowed:
                error = answer.json()["error"]
                assert error["code"] == "host_not_allowed" and host in error["message"]


def test_hosts() -> None:
    own = socket.gethostname().lower()
    for good in ("localhost", "a.localhost:80", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7", own):
        assert refuse_host({b"host": good.encode()}, {own}) is None
    for bad in ("localhost.evil.example", "1.evil", "[::1", "127.0.0.1.evil:80", "a b", "@"):
        assert refuse_host({b"host": bad.encode()}, {own}) is not None
    assert refuse_host({}, set()) is None and refuse_host({b"host": b"x"}, None) is None


def test_browsers_know_better_than_hosts() -> None:
    """Behind a proxy that changes the host, what the browser says about the origin counts."""
    headers = {b"host": b"127.0.0.1:8000", b"origin": ALLOWED.encode()}
    assert refuse_origin("POST", headers, ()) is not None
    assert refuse_origin("POST", {**headers, b"sec-fetch-site": b"same-origin"}, ()) is None
    rebuilt = {b"host": b"app.example", b"origin": ALLOWED.encode()}
    assert refuse_origin("POST", {**rebuilt, b"sec-fetch-site": b"same-site"}, ()) is not None
    assert refuse_origin("POST", rebuilt, ()) is None
    assert refuse_origin("GET", headers, ()) is None and refuse_origin("POST", headers, "*") is None
