"""Where answers come from: this machine's model, or a vLLM server that applies the edit as a LoRA."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import UsageError
from scen_cli.export.peft_folder import adapter_name
from scen_cli.serving.jobs import Job, Jobs
from scen_cli.serving.messages import Chat, Completion
from scen_cli.serving.text import Text

Asked = Completion | Chat


class UpstreamFailed(Exception):
    """The server behind this one did not answer, or answered with an error."""


@dataclass(frozen=True)
class Piece:
    """Some more `text` of an answer, the `tokens` it took, and, with the last, how it `finish`ed."""

    edit: int | None
    text: str
    tokens: int = 0
    finish: str | None = None


class Answers(Protocol):
    """Takes a prompt's job and the request it came with; gives the answer in pieces."""

    def pieces(self, job: Job, asked: Asked) -> AsyncGenerator[Piece, None]: ...

    async def healthy(self) -> bool: ...

    async def close(self) -> None: ...


class OwnAnswers:
    """The model of this process."""

    def __init__(self, jobs: Jobs, patched: PatchedModel) -> None:
        self._jobs, self._tokenizer = jobs, patched.base.tokenizer

    async def pieces(self, job: Job, asked: Asked) -> AsyncGenerator[Piece, None]:
        self._jobs.submit(job)
        text = Text(self._tokenizer, asked.stops)
        async for step in job.steps():
            new = text.add(step.token) if step.token is not None else ""
            finish = "stop" if text.stopped else step.finish
            if finish:
                new += text.rest()
            yield Piece(step.edit, new, int(step.token is not None), finish)
            if finish:
                return

    async def healthy(self) -> bool:
        return self._jobs.alive

    async def close(self) -> None: ...


class VllmAnswers:
    """A vLLM server: the edit's LoRA is the model's name there. The prompt goes as the very tokens it was routed by."""

    def __init__(
        self, jobs: Jobs, patched: PatchedModel, url: str, base_model: str, timeout: float, key: str | None = None
    ) -> None:
        """Raises `UsageError` for an address that is none."""
        self._jobs, self._base_model, self._end_ids = jobs, base_model, list(patched.template.end_ids)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"`{url}` is no address: {error}", hint="e.g. http://localhost:8001") from error
        if address.scheme not in ("http", "https") or not address.host:
            raise UsageError(f"`{url}` is no address", hint="e.g. http://localhost:8001")
        root = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.AsyncClient(base_url=root, timeout=timeout, headers=headers)

    async def pieces(self, job: Job, asked: Asked) -> AsyncGenerator[Piece, None]:
        self._jobs.submit(job)
        edit = [step.edit async for step in job.steps()][-1]
        body: dict[str, Any] = {
            "model": self._base_model if edit is None else adapter_name(edit),
            "prompt": job.ids,
            "max_tokens": job.max_tokens,
            "temperature": job.sampling.temperature,
            "top_p": job.sampling.top_p,
            "seed": job.sampling.seed,
            "stop": asked.stops or None,
            "stop_token_ids": self._end_ids,
            # The base's generation config may say otherwise, and vLLM goes by it where nothing is said.
            **{"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0, "stream": bool(asked.stream)},
        }
        if asked.stream:
            body["stream_options"] = {"include_usage": True}
        body = {name: value for name, value in body.items() if value is not None}
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    told = (await response.aread()).decode(errors="replace")[:300]
                    raise UpstreamFailed(f"the server behind this one answered {response.status_code}: {told}")
                if asked.stream:
                    async for piece in _streamed(response, edit):
                        yield piece
                else:
                    told = json.loads(await response.aread())
                    choice = told["choices"][0]
                    tokens = (told.get("usage") or {}).get("completion_tokens", 0)
                    yield Piece(edit, choice["text"], tokens, choice["finish_reason"] or "stop")
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UpstreamFailed(f"the server behind this one failed: {type(error).__name__}: {error}") from error

    async def healthy(self) -> bool:
        try:
            return self._jobs.alive and (await self._client.get("/health", timeout=5)).status_code == 200
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        await self._client.aclose()


async def _streamed(response: httpx.Response, edit: int | None) -> AsyncIterator[Piece]:
    """The pieces of a streamed completion; what ended it comes last, behind the count of its tokens."""
    finish, tokens = None, 0
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            break
        told: dict[str, Any] = json.loads(data)
        tokens = (told.get("usage") or {}).get("completion_tokens", tokens)
        for choice in told["choices"]:
            finish = choice["finish_reason"] or finish
            if choice["text"]:
                yield Piece(edit, choice["text"])
    if finish is None:
        raise UpstreamFailed("the server behind this one broke off")
    yield Piece(edit, "", tokens, finish)
