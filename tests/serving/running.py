"""Runs a server with uvicorn on a free port in a thread, and a client for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from scen_cli.serving.connections import LimitedConnection


@contextmanager
def running(asgi_app) -> Iterator[str]:
    """Serve an ASGI application inside this block; yields its address."""
    server = uvicorn.Server(uvicorn.Config(asgi_app, port=0, http=LimitedConnection, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
    assert not thread.is_alive(), "the server did not stop"


def chat(prompt: str, **fields) -> dict:
    return {"messages": [{"role": "user", "content": prompt}], **fields}


async def ask_all(url: str, bodies: list[dict], concurrency: int = 16) -> list[httpx.Response]:
    """The responses to chat requests; at most `concurrency` requests run at the same time."""
    semaphore = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def post(body: dict) -> httpx.Response:
            async with semaphore:
                return await client.post("/v1/chat/completions", json=body)

        return await asyncio.gather(*(post(body) for body in bodies))
