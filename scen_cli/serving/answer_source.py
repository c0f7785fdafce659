"""`AnswerSource`: the interface of what generates answers, `LocalAnswerSource` or `VllmAnswerSource`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from scen_cli.serving.protocol import RequestBody
from scen_cli.serving.request_queue import GenerationRequest


class UpstreamError(Exception):
    """The vLLM server did not answer, or answered with an error."""


@dataclass(frozen=True)
class AnswerChunk:
    """A part of an answer: the `edit` that answers (None: the base), its new `text`, the number of new `tokens`, and
    the `finish_reason` of the last chunk."""

    edit: int | None
    text: str
    tokens: int = 0
    finish_reason: str | None = None


class AnswerSource(Protocol):
    """Generates the answer to one request."""

    def chunks(self, request: GenerationRequest, body: RequestBody) -> AsyncGenerator[AnswerChunk, None]:
        """Yield the answer. Raises `QueueFull`, `ModelFailed` or `UpstreamError`."""
        ...

    async def healthy(self) -> bool: ...

    async def close(self) -> None: ...
