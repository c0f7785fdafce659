"""`AnswerSource`, the interface of what generates answers, and `LocalAnswerSource`, the model in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from scen_cli.serving.protocol import AnswerChunk, RequestBody
from scen_cli.serving.request_queue import GenerationRequest, RequestQueue


class UpstreamError(Exception):
    """The vLLM server did not answer, or answered with an error."""


class AnswerSource(Protocol):
    """Generates the answer to one request."""

    def chunks(self, request: GenerationRequest, body: RequestBody) -> AsyncGenerator[AnswerChunk, None]:
        """Yield the answer. Raises `QueueFull`, `ModelFailed` or `UpstreamError`."""
        ...

    async def healthy(self) -> bool: ...

    async def close(self) -> None: ...


class LocalAnswerSource:
    """An `AnswerSource`. The queue's `BatchGenerator` sends the tokens."""

    def __init__(self, queue: RequestQueue, tokenizer: PreTrainedTokenizerBase) -> None:
        self._queue, self._tokenizer = queue, tokenizer

    async def chunks(self, request: GenerationRequest, body: RequestBody) -> AsyncGenerator[AnswerChunk, None]:
        self._queue.submit(request)
        detokenizer = IncrementalDetokenizer(self._tokenizer, body.stop_strings)
        async for event in request.events():
            text = detokenizer.add(event.token) if event.token is not None else ""
            finish_reason = "stop" if detokenizer.stopped else event.finish_reason
            if finish_reason:
                text += detokenizer.flush()
            yield AnswerChunk(event.edit, text, int(event.token is not None), finish_reason)
            if finish_reason:
                return

    async def healthy(self) -> bool:
        return self._queue.healthy

    async def close(self) -> None: ...


class IncrementalDetokenizer:
    """The text of one answer during generation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> None:
        self._tokenizer, self._stop_strings = tokenizer, stop_strings
        self._tokens: list[int] = []
        # Tokens from `_context_start` to `_decoded_end` are already text; they are decoded again as context.
        self._context_start, self._decoded_end = 0, 0
        self._pending = ""  # decoded text that may begin a stop string
        self.stopped = False  # a stop string was found

    def add(self, token: int) -> str:
        """Add a token. Returns the text that can be sent now."""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith("\ufffd"):  # the character is incomplete: later tokens complete it
            return ""
        self._context_start, self._decoded_end = self._decoded_end, len(self._tokens)
        self._pending += text
        found = [start for start in (self._pending.find(stop) for stop in self._stop_strings) if start >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(self._pending) - self._possible_stop_length()
        text, self._pending = self._pending[:end], self._pending[end:]
        return text

    def flush(self) -> str:
        """Return the text that was held back, after the last token."""
        return "" if self.stopped else self._pending + self._new_text()

    def _new_text(self) -> str:
        """The text that the tokens after `_decoded_end` add.

        The text of a token can depend on the token before it. So the tokens of the previous piece are decoded with
        them, and no earlier ones: the cost does not grow with the answer.
        """
        context = self._decode(self._tokens[self._context_start : self._decoded_end])
        return self._decode(self._tokens[self._context_start :])[len(context) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _possible_stop_length(self) -> int:
        """Number of characters at the end of `_pending` that may begin a stop string."""
        longest = max((len(stop) for stop in self._stop_strings), default=1) - 1
        lengths = range(min(longest, len(self._pending)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._pending[-n:]) for stop in self._stop_strings)), 0)
