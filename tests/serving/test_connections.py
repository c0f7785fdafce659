"""Connections without a request do not keep others out."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from scen_cli.serving import connections
from scen_cli.serving.connections import LimitedConnection
from tests.serving.running import running


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(LimitedConnection, "first_request_seconds", 0.5)
    app = Starlette(routes=[Route("/health", lambda _request: PlainTextResponse("ok"))])
    with running(app) as url:
        yield urlsplit(url).hostname, urlsplit(url).port


def health(address) -> str:
    return httpx.get(f"http://{address[0]}:{address[1]}/health", timeout=5).text


def is_closed(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nHost:"])
def test_a_connection_without_a_whole_request_is_closed(address, said):
    with socket.create_connection(address) as quiet:
        quiet.sendall(said)
        assert is_closed(quiet, 5)
    assert health(address) == "ok"


def test_a_connection_that_has_asked_stays_open(address):
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=5) as client:
        assert client.get("/health").text == "ok"
        time.sleep(1)
        assert client.get("/health").text == "ok"


def test_connections_beyond_the_limit_are_refused_until_others_end(address, monkeypatch):
    monkeypatch.setattr(connections, "most_connections", lambda: 20)
    quiet = [socket.create_connection(address) for _ in range(30)]
    time.sleep(0.1)
    assert sum(is_closed(connection, 0.02) for connection in quiet) >= 10
    time.sleep(1)
    assert health(address) == "ok"
    for connection in quiet:
        connection.close()
