"""Large request bodies are refused before they are tokenised, and do not keep other clients waiting."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import httpx

from scen_cli.serving.app import ServerOptions
from scen_cli.serving.protocol import MAX_MESSAGES
from scen_cli.serving.server import local_app
from tests.serving.running import ask_all, chat, running


def conversation(messages: int) -> dict:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": "a"} for n in range(messages)]}


def test_other_clients_do_not_wait_for_large_bodies(low_rank):
    large = json.dumps(conversation(20_001)).encode()

    async def ask(url: str) -> tuple[float, float, set[int]]:
        """Beside 16 large bodies: the longest wait for `/health`, the answer's wait, and the statuses of those."""
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            started, waits = time.monotonic(), []
            posts = [asyncio.ensure_future(client.post("/v1/chat/completions", content=large)) for _ in range(16)]
            small = asyncio.ensure_future(client.post("/v1/chat/completions", json=chat("x")))
            small.add_done_callback(lambda _: waits.append(time.monotonic() - started))
            longest = 0.0
            while not all(post.done() for post in [*posts, small]):
                asked = time.monotonic()
                assert (await client.get("/health")).status_code == 200
                longest = max(longest, time.monotonic() - asked)
            assert small.result().status_code == 200
            return longest, waits[0], {post.result().status_code for post in posts}

    with running(local_app(low_rank, ServerOptions()).asgi()) as url:
        health, answer, statuses = asyncio.run(ask(url))
    assert statuses == {400}
    assert health < 2
    assert answer < 5


def test_a_body_is_read_beside_the_event_loop(low_rank):
    app, go = local_app(low_rank, ServerOptions()), threading.Event()
    read = app._read
    app._read = lambda *body: read(*body) if go.wait(30) else None

    async def ask(url: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=url, timeout=5) as client:
            post = asyncio.ensure_future(client.post("/v1/chat/completions", json=chat("x")))
            assert await asyncio.wait([post], timeout=0.3) == (set(), {post})
            assert (await client.get("/health")).status_code == 200
            go.set()
            return await post

    with running(app.asgi()) as url:
        assert asyncio.run(ask(url)).status_code == 200


def test_limits_are_checked_before_a_prompt_is_tokenised(low_rank):
    long = "a" * (low_rank.context * 16 + 1)
    with running(local_app(low_rank, ServerOptions()).asgi()) as url:
        most, more, text = asyncio.run(
            ask_all(url, [conversation(MAX_MESSAGES - 1), conversation(MAX_MESSAGES + 1), chat(long)])
        )
        completion = httpx.post(f"{url}/v1/completions", json={"prompt": long})
    for response, word in (
        (most, "tokens"),
        (more, f"messages: List should have at most {MAX_MESSAGES} items"),
        (text, f"{len(long)} characters"),
        (completion, f"{len(long)} characters"),
    ):
        assert response.status_code == 400
        assert word in response.json()["error"]["message"]
        assert response.json()["error"]["type"] == "invalid_request_error"
