"""Keeps pages of other web sites out: a browser sends their requests to local servers too.

A page can have its own name lead to this server (DNS rebinding): then `Host` is that name. Otherwise `Origin` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from scen_cli.serving.protocol import error_body

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
ALL_ADDRESSES = ("0.0.0.0", "::")


def hosts_of(address: str, more: Sequence[str]) -> tuple[str, ...]:
    """The hosts that a server which listens at `address` answers to: local names, the address, and `more`.

    All (`*`), if it listens at all addresses and no `more` are named: what the machine is called is then unknown.
    """
    if address in ALL_ADDRESSES and not more:
        return ("*",)
    return (*LOCAL_HOSTS, f"[{address}]" if ":" in address else address, *more)


def guards(hosts: Sequence[str], origins: Sequence[str]) -> list[Middleware]:
    """What requests pass before they are answered: `OriginGuard`, and what tells browsers which `origins` may ask."""
    guard = Middleware(OriginGuard, hosts, origins)
    if not origins:
        return [guard]
    methods, shown = ["GET", "POST"], ["x-scen-edit"]
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"], expose_headers=shown
    )
    return [guard, cors]


class OriginGuard:
    """ASGI middleware. Refuses requests to another host than these, and posts by pages of another origin than this
    server or these. `*` allows all."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._app, self._origins = app, set(origins)
        self._names = {_name(host) for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        await (refused or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if "*" not in self._names and _name(host) not in self._names:
            return _error(400, f"this server does not answer to the host {host!r}: `--allowed-host` can add it")
        if origin is None or scope["method"] in ("GET", "HEAD", "OPTIONS") or self._origins & {origin, "*"}:
            return None
        if origin.lower().split("://")[-1] == host.lower():
            return None
        return _error(403, f"this server answers no page of {origin!r}: `--allow-origin` can add it")


def _name(host: str) -> str | None:
    """The host without its port, in lower case; None if it cannot be one."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _error(code: int, message: str) -> JSONResponse:
    return JSONResponse(error_body(message, "invalid_request_error", code), code)
