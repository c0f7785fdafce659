"""Answers from a vLLM server. `completion_request` builds the request that it gets."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx

from scen_cli.errors import UsageError
from scen_cli.export.peft_folder import adapter_name
from scen_cli.serving.answer_source import UpstreamError
from scen_cli.serving.protocol import AnswerChunk, RequestBody
from scen_cli.serving.request_queue import GenerationRequest, RequestQueue


def completion_request(
    request: GenerationRequest, body: RequestBody, model: str, stop_token_ids: list[int]
) -> dict[str, Any]:
    """Build the body of vLLM's `POST /v1/completions`.

    Args:
        request: The prompt. vLLM gets the same token ids that were routed, not the text.
        body: What the client sent.
        model: The name of the edit's LoRA, or of the base.
        stop_token_ids: The base's end tokens.
    """
    fields = {
        "model": model,
        "prompt": request.prompt_ids,
        "max_tokens": request.max_tokens,
        **vars(request.sampling),  # all of them: vLLM would take others from the base's generation config
        "stop": body.stop_strings or None,
        "stop_token_ids": stop_token_ids,
        "stream": bool(body.stream),
        "stream_options": {"include_usage": True} if body.stream else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


class VllmAnswerSource:
    """An `AnswerSource`. The queue's `BatchRouter` finds the edit; vLLM serves the edit's LoRA under the name
    `adapter_name(edit)` and generates the answer with it."""

    def __init__(
        self,
        queue: RequestQueue,
        url: str,
        base_model: str,
        stop_token_ids: list[int],
        timeout: float,
        api_key: str | None = None,
    ) -> None:
        """Raises `UsageError` if `url` is not an HTTP address. `base_model` is vLLM's name of the base; `timeout` is in
        seconds."""
        self._queue, self._base_model, self._stop_token_ids = queue, base_model, stop_token_ids
        try:
            address = httpx.URL(url)
            valid = address.scheme in ("http", "https") and address.host
        except httpx.InvalidURL:
            valid = False
        if not valid:
            raise UsageError(f"`{url}` is not an HTTP address", hint="e.g. http://localhost:8001")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        root = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.AsyncClient(base_url=root, timeout=timeout, headers=headers)

    async def chunks(self, request: GenerationRequest, body: RequestBody) -> AsyncGenerator[AnswerChunk, None]:
        self._queue.submit(request)
        edit = [event.edit async for event in request.events()][-1]
        model = self._base_model if edit is None else adapter_name(edit)
        fields = completion_request(request, body, model, self._stop_token_ids)
        try:
            async with self._client.stream("POST", "/v1/completions", json=fields) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")[:300]
                    raise UpstreamError(f"the vLLM server answered {response.status_code}: {text}")
                if body.stream:
                    async for chunk in _stream_chunks(response, edit):
                        yield chunk
                else:
                    reply = json.loads(await response.aread())
                    choice = reply["choices"][0]
                    yield AnswerChunk(edit, choice["text"], _token_count(reply, 0), choice["finish_reason"] or "stop")
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UpstreamError(f"the vLLM server failed: {type(error).__name__}: {error}") from error

    async def healthy(self) -> bool:
        try:
            return self._queue.healthy and (await self._client.get("/health", timeout=5)).status_code == 200
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        await self._client.aclose()


async def _stream_chunks(response: httpx.Response, edit: int | None) -> AsyncIterator[AnswerChunk]:
    """Yield the chunks of a streamed completion. The last one has the finish reason and the token count, which vLLM
    sends after the finish reason."""
    finish_reason, tokens = None, 0
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            break
        event: dict[str, Any] = json.loads(data)
        tokens = _token_count(event, tokens)
        for choice in event["choices"]:
            finish_reason = choice["finish_reason"] or finish_reason
            if choice["text"]:
                yield AnswerChunk(edit, choice["text"])
    if finish_reason is None:
        raise UpstreamError("the vLLM server ended the stream before the answer was complete")
    yield AnswerChunk(edit, "", tokens, finish_reason)


def _token_count(reply: dict[str, Any], default: int) -> int:
    count: int = (reply.get("usage") or {}).get("completion_tokens", default)
    return count
